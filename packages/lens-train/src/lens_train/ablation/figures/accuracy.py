"""Figures of accuracies: the one that tells the story alone, one of every skill, and one of all prompt styles."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lens_train.ablation.figures.look import INK, LINE, SOFT, cut, from_zero, new_figure, plain, png, style, subtitle
from lens_train.ablation.figures.scale import draw_axis
from lens_train.ablation.figures.training import draw_scores
from lens_train.ablation.measurements import OWN
from lens_train.ablation.sentences import percent, skill_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from lens_train.ablation.findings import Axis, Comparison, Result

__all__ = ["overview_figure", "skills_figure", "styles_figure"]

_EQUAL = {
    "flops": "All arms had the same training FLOPs.",
    "steps": "All arms took the same steps.",
    "samples": "All arms saw the same number of images.",
    "tokens": "All arms saw the same number of tokens.",
}
_MARKERS = ("o", "s", "D", "^")


def overview_figure(
    title: str, made: Comparison, colours: Mapping[str, str], skills: Sequence[str], axis: Axis | None
) -> bytes:
    """Accuracy by arm with intervals; beside it what detail is worth in size, or else how accuracy grew in training.

    Args:
        title: what the picture is about.
        made: the main ablation.
        colours: by arm.
        skills: that are shown; the curve is of the last one.
        axis: the scale to show, if there is one.
    """
    arms = [arm for arm in made.ablation.arms if any((arm, OWN, skill) in made.results for skill in skills)]
    last = skills[-1]
    has_curve = axis is not None or any(made.ablation.curves(arm, "score", last) for arm in arms)
    with style():
        figure = new_figure(1.5 + 0.52 * max(4, len(arms)))
        seeds = sorted({result.accuracy.seeds for result in made.results.values()})
        basis = f"Means and 95 % intervals over {' or '.join(map(str, seeds))} seeds (small dots)."
        if seeds == [1]:
            basis = "One seed, so exploratory; 95 % intervals over prompts."
        told = " ".join([basis, *(_EQUAL[name] for name in made.ablation.budget)])
        figure.suptitle(cut(title, 75), x=0.012, ha="left", fontsize=11.5, fontweight="bold")
        panels = figure.subplots(1, 2, width_ratios=(1.15, 1)) if has_curve else [figure.subplots()]
        _draw_arms(panels[0], made, arms, colours, skills)
        if axis is not None:
            draw_axis(panels[1], axis, colours, title=f"{cut(skill_words(axis.skill))} drawn right, %")
            from_zero(panels[1])
        elif has_curve:
            draw_scores(panels[1], made.ablation, arms, colours, last)
        figure.supxlabel(told, x=0.012, ha="left", fontsize=8, color=SOFT)
        return png(figure)


def skills_figure(made: Comparison, colours: Mapping[str, str]) -> bytes:
    """Every skill: accuracy of each arm asked in its own style, and its difference to the baseline, with intervals.

    Args:
        made: an ablation.
        colours: by arm.
    """
    skills = made.ablation.skills
    arms = [arm for arm in made.ablation.arms if any((arm, OWN, skill) in made.results for skill in skills)]
    with style():
        figure = new_figure(1.2 + max(2.0, 0.13 * (len(arms) + 1.5) * len(skills)))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.2, 1))
        for number, arm in enumerate(arms):
            shift = (number - (len(arms) - 1) / 2) * 0.8 / max(len(arms), 2)
            for place, skill in enumerate(skills):
                result = made.results.get((arm, OWN, skill))
                if result is None:
                    continue
                own, apart = result.accuracy, result.difference
                _interval(left, place + shift, own.value, own.low, own.high, colours[arm], filled=not own.exploratory)
                if apart:
                    sure = result.p is not None and result.p < 0.05 and result.claimable
                    _interval(right, place + shift, apart.value, apart.low, apart.high, colours[arm], filled=sure)
            left.plot([], [], "o", color=colours[arm], label=cut(arm))
        left.set_yticks(range(len(skills)), [cut(skill) for skill in skills])
        left.set_ylim(len(skills) - 0.4, -0.6)
        left.set_xlim(-2, 103)
        left.set_title("accuracy in the arm's own style, %")
        right.set_title(f"difference to {cut(made.baseline or 'its baseline')}, points")
        right.axvline(0, color=SOFT, linewidth=1)
        for axes in (left, right):
            plain(axes, grid="x")
            for edge in range(1, len(skills)):
                axes.axhline(edge - 0.5, color=LINE, linewidth=0.6)
        if arms:
            figure.legend(loc="outside lower left", ncols=min(5, len(arms)), handletextpad=0.2)
        return png(figure)


def styles_figure(made: Comparison) -> bytes:
    """Accuracy of every arm in every prompt style, a small table a skill; an arm's own style is framed."""
    skills, styles, arms = made.ablation.skills, made.ablation.styles, list(made.ablation.arms)
    columns = min(len(skills), max(1, min(4, 16 // max(1, len(styles)))))
    lines = math.ceil(len(skills) / columns)
    with style():
        figure = new_figure(lines * (0.75 + 0.22 * len(arms)))
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for number, axes in enumerate(panels.flat):
            if number >= len(skills):
                axes.axis("off")
                continue
            for row, arm in enumerate(arms):
                for column, asked in enumerate(styles):
                    result = made.results.get((arm, asked, skills[number]))
                    if result:
                        _tile(axes, column, row, result.accuracy.value, own=made.ablation.arms[arm] == asked)
            axes.set_xlim(-0.5, len(styles) - 0.5)
            axes.set_ylim(len(arms) - 0.5, -0.5)
            axes.set_xticks(range(len(styles)), [cut(name, 10) for name in styles])
            axes.set_yticks(range(len(arms)), [cut(arm, 16) for arm in arms])
            axes.tick_params(length=0, labelsize=7.5, labelbottom=True)
            axes.set_title(cut(skills[number], 20))
            for spine in axes.spines.values():
                spine.set_visible(False)
        return png(figure)


def _draw_arms(
    axes: Axes, made: Comparison, arms: Sequence[str], colours: Mapping[str, str], skills: Sequence[str]
) -> None:
    names = []
    for place, arm in enumerate(arms):
        words = made.ablation.known(arm, "caption_words")
        names.append(cut(arm) if words is None else f"{cut(arm)}\n{words:.0f} words")
        for number, skill in enumerate(skills):
            result = made.results.get((arm, OWN, skill))
            if result:
                y = place + (number - (len(skills) - 1) / 2) * 0.7 / max(2, len(skills))
                _draw_result(axes, y, result, colours[arm], _MARKERS[number % len(_MARKERS)])
    for number, skill in enumerate(skills):
        axes.plot([], [], _MARKERS[number % len(_MARKERS)], color=SOFT, label=cut(skill_words(skill)))
    axes.set_yticks(range(len(arms)), names, color=INK)
    axes.set_ylim(len(arms) - 0.45, -0.55)
    axes.set_xlim(-2, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_title("prompts drawn right, %")
    subtitle(axes, "each arm asked in the style of its own captions")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.08), ncols=len(skills), handletextpad=0.2)
    plain(axes, grid="x")


def _draw_result(axes: Axes, y: float, result: Result, colour: str, marker: str) -> None:
    own = result.accuracy
    if own.basis == "seeds":
        axes.plot(
            [100 * share for share in result.seeds.values()], [y] * own.seeds, "o", color=colour, ms=2.5, alpha=0.5
        )
    _interval(axes, y, own.value, own.low, own.high, colour, filled=not own.exploratory, marker=marker)
    axes.annotate(percent(own.value), (100 * own.high, y), (4, 0), textcoords="offset points", va="center", fontsize=8)


def _interval(
    axes: Axes, y: float, value: float, low: float, high: float, colour: str, *, filled: bool, marker: str = "o"
) -> None:
    axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=1.4, zorder=2)
    axes.plot([100 * value], [y], marker, color=colour, mfc=colour if filled else "white", ms=5.5, zorder=3)


def _tile(axes: Axes, column: int, row: int, value: float, *, own: bool) -> None:
    shade = tuple(1 - value * (1 - full) for full in (0.0, 0.33, 0.56))  # white to a dark blue
    axes.fill(
        [column - 0.46, column + 0.46, column + 0.46, column - 0.46],
        [row - 0.43, row - 0.43, row + 0.43, row + 0.43],
        facecolor=shade,
        edgecolor="#d55e00" if own else LINE,
        linewidth=1.6 if own else 0.6,
        zorder=3 if own else 2,
    )
    ink = "white" if value > 0.7 else INK
    axes.text(column, row, percent(value), ha="center", va="center", fontsize=8, color=ink, zorder=4)
