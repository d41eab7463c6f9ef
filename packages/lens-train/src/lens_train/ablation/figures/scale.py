"""Curves over a scale: accuracy of two kinds of caption by size, and accuracy by the share of mistakes in captions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lens_train.ablation.figures.look import (
    INK,
    compact,
    cut,
    from_zero,
    name_ends,
    new_figure,
    plain,
    png,
    style,
    subtitle,
)
from lens_train.ablation.scaling import band
from lens_train.ablation.sentences import in_short, skill_words, times, told_factor, told_noise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lens_train.ablation.findings import Axis, Noise
    from lens_train.ablation.scaling import Band, Point

__all__ = ["axis_figure", "draw_axis", "noise_figure"]


def axis_figure(axes_found: Sequence[Axis], colours: Mapping[str, str]) -> bytes:
    """Accuracy of two kinds of caption by size, a panel a skill.

    Args:
        axes_found: of one axis, a skill each.
        colours: by name of the kind.
    """
    with style():
        figure, panels = _panels(len(axes_found))
        for axes, axis in zip(panels, axes_found, strict=True):
            draw_axis(axes, axis, colours, title=cut(skill_words(axis.skill)))
        from_zero(panels[0])  # once all are drawn: it ends the fitting of the axis that they share
        return png(figure)


def noise_figure(noises: Sequence[Noise], colours: Mapping[str, str]) -> bytes:
    """Accuracy by share of mistakes, the rival's accuracy, and where they meet; a panel a skill.

    Args:
        noises: of one kind of noise, a skill each.
        colours: by name of the arms.
    """
    with style():
        figure, panels = _panels(len(noises))
        for axes, noise in zip(panels, noises, strict=True):
            _draw_noise(axes, noise, colours)
        from_zero(panels[0])  # once all are drawn: it ends the fitting of the axis that they share
        return png(figure)


def draw_axis(axes: Axes, axis: Axis, colours: Mapping[str, str], *, title: str) -> None:
    """Two curves with their bands and seeds, and an arrow from the one to the other where they meet."""
    long, short = axis.config.long.name, axis.config.short.name
    curves = {long: band(axis.long), short: band(axis.short)}
    for name, points in ((long, axis.long), (short, axis.short)):
        _draw_band(axes, curves[name], points, colours[name])
    if axis.factor.levels:
        level = sum(axis.factor.levels) / 2
        start, end = (float(np.interp(level, curves[name].y, curves[name].x)) for name in (long, short))
        arrow = {"arrowstyle": "->", "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (end, 100 * level), (start, 100 * level), arrowprops=arrow)
        middle = (math.sqrt(start * end), 100 * level)
        axes.annotate(
            times(axis.factor.value), middle, (0, 4), textcoords="offset points", ha="center", fontweight="bold"
        )
    axes.set_xscale("log")
    axes.minorticks_off()
    places = sorted({point.x for point in (*axis.long, *axis.short)})
    ticks = _apart(places)
    axes.set_xticks(ticks, [compact(place) for place in ticks])
    axes.set_xlim(places[0] / 1.1, places[-1] * (places[-1] / places[0]) ** 0.28)
    axes.set_xlabel(cut(axis.config.label, 40))
    axes.set_title(title)
    plain(axes)
    subtitle(axes, f"{cut(long)}: {in_short(told_factor(axis.factor))}")
    name_ends(axes, {name: (curve.x[-1], 100 * curve.y[-1]) for name, curve in curves.items()}, colours)


def _draw_noise(axes: Axes, noise: Noise, colours: Mapping[str, str]) -> None:
    clean, rival = noise.clean, noise.rival
    curve = band(noise.points, falling=True, logarithmic=False)
    _draw_band(axes, curve, noise.points, colours[clean], percent_of_x=True)
    first, last = 100 * curve.x[0], 100 * curve.x[-1]
    for value in noise.rival_values:
        axes.plot([first, last], [100 * value] * 2, color=colours[rival], linewidth=0.6, alpha=0.5)
    level = 100 * noise.cancelled.rival
    axes.plot([first, last], [level] * 2, color=colours[rival], linewidth=1.8, linestyle=(0, (4, 2)))
    if 0 < noise.cancelled.value <= noise.cancelled.largest:
        axes.axvline(100 * noise.cancelled.value, color=INK, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_xlim(first - 0.03 * last, 1.28 * last)
    axes.set_xticks([100 * point.x for point in noise.points])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"{cut(noise.config.label, 40)}, %")
    axes.set_title(cut(skill_words(noise.skill)))
    plain(axes)
    subtitle(axes, in_short(told_noise(noise)))
    name_ends(axes, {clean: (last, 100 * curve.y[-1]), rival: (last, level)}, colours)


def _draw_band(axes: Axes, curve: Band, points: Sequence[Point], colour: str, *, percent_of_x: bool = False) -> None:
    scale = 100 if percent_of_x else 1
    x = scale * curve.x
    axes.fill_between(x, 100 * curve.low, 100 * curve.high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, 100 * curve.y, color=colour, linewidth=1.8)
    for point in points:
        seeds = [100 * value for value in point.values]
        axes.plot([scale * point.x] * len(seeds), seeds, "o", color=colour, ms=3, alpha=0.6)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, three in a row at most."""
    rows = math.ceil(count / 3)
    figure = new_figure(3.1 * rows)
    grid = figure.subplots(rows, math.ceil(count / rows), squeeze=False, sharey=True)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.remove()
    for first in grid[:, 0]:
        first.set_ylabel("prompts drawn right, %")
    return figure, panels[:count]


def _apart(places: Sequence[float]) -> list[float]:
    """Places far enough from one another for a label each, on a logarithmic axis."""
    kept: list[float] = []
    room = math.log(places[-1] / places[0]) / 8
    for place in places:
        if not kept or math.log(place / kept[-1]) > room:
            kept.append(place)
    return kept
