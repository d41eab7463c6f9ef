"""Curves of training: losses and scores against steps, images, tokens, FLOPs and what the captions would have cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from lens_train.ablation.figures.look import compact, cut, from_zero, name_ends, new_figure, plain, png, style, subtitle
from lens_train.ablation.sentences import skill_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from lens_train.ablation.measurements import Ablation
    from lens_train.stages.ablation_report.config import PriceConfig

__all__ = ["draw_scores", "learning_figure"]

_DOLLARS = "dollars"
_ACROSS = {
    "step": "steps",
    "samples": "images seen",
    "tokens": "tokens seen",
    "flops": "training FLOPs",
    _DOLLARS: "hypothetical caption dollars",
}


def learning_figure(
    ablation: Ablation, metric: str, skill: str | None, colours: Mapping[str, str], prices: PriceConfig
) -> bytes | None:
    """A curve of training against all that it cost; None where no arm has one.

    Args:
        ablation: whose.
        metric: "loss", "validation_loss" or "score".
        skill: of the score.
        colours: by arm.
        prices: of captions.
    """
    curves = {
        arm: [_with_dollars(ablation, arm, seed, points, prices) for seed, points in found.items() if len(points) > 1]
        for arm in ablation.arms
        if (found := ablation.curves(arm, metric, skill))
    }
    curves = {arm: seeds for arm, seeds in curves.items() if seeds}
    if not curves:
        return None
    known = [
        key for key in _ACROSS if all(point.get(key) is not None for s in curves.values() for c in s for point in c)
    ]
    with style():
        figure = new_figure(4.6 if len(known) > 2 else 2.6)
        panels = figure.subplots(math.ceil((len(known) + 1) / 3), 3, sharey=True, squeeze=False)
        for axes, key in zip(panels.flat, known, strict=False):
            _draw_curves(axes, curves, key, colours, smooth=metric == "loss", scale=100 if metric == "score" else 1)
            axes.set_xlabel(_ACROSS[key])
            if metric != "score":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")
        if metric == "score":
            from_zero(panels[0, 0])
        for axes in panels.flat[len(known) :]:
            axes.axis("off")
        for axes in panels[:, 0]:
            axes.set_ylabel(f"{cut(skill_words(skill))} right, %" if skill else metric.replace("_", " "))
        handles, labels = panels[0, 0].get_legend_handles_labels()
        panels.flat[len(known)].legend(handles, labels, loc="upper left", ncols=1 + len(labels) // 9)
        return png(figure)


def draw_scores(axes: Axes, ablation: Ablation, arms: Sequence[str], colours: Mapping[str, str], skill: str) -> None:
    """Share right during training against FLOPs, a line an arm, named at its end."""
    curves = {arm: list(ablation.curves(arm, "score", skill).values()) for arm in arms}
    ends = _draw_curves(axes, {arm: seeds for arm, seeds in curves.items() if seeds}, "flops", colours, scale=100)
    from_zero(axes)
    axes.set_xlabel("training FLOPs")
    axes.set_title(f"{cut(skill_words(skill))} right, %")
    subtitle(axes, "while training, on other prompts")
    name_ends(axes, ends, colours)


def _draw_curves(
    axes: Axes,
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    key: str,
    colours: Mapping[str, str],
    *,
    smooth: bool = False,
    scale: float = 1,
) -> dict[str, tuple[float, float]]:
    """A thin line a seed, and their mean, step by step, as far as all of them go; gives where the means end."""
    ends = {}
    for arm, seeds in curves.items():
        lines = []
        for seed in seeds:
            step, x, y = (np.array([point[name] for point in seed], float) for name in ("step", key, "value"))
            lines.append((step, x, scale * (_smooth(y) if smooth else y)))
        # Not over x: captions are paid once, so dollars stand still from the end of the first epoch on.
        steps = np.linspace(max(step[0] for step, *_ in lines), min(step[-1] for step, *_ in lines), 200)
        grid, middle = (np.mean([np.interp(steps, line[0], line[at]) for line in lines], axis=0) for at in (1, 2))
        for _, x, y in lines if len(lines) > 1 else []:
            axes.plot(x, y, color=colours[arm], linewidth=0.6, alpha=0.35)
        axes.plot(grid, middle, color=colours[arm], linewidth=1.8, label=cut(arm))
        ends[arm] = (float(grid[-1]), float(middle[-1]))
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    plain(axes)
    return ends


def _with_dollars(
    ablation: Ablation, arm: str, seed: int, points: Sequence[dict[str, float]], prices: PriceConfig
) -> list[dict[str, Any]]:
    """Points that also say what the captions of the distinct images seen so far would have cost."""
    words, images = (ablation.final(arm, name).get(seed) for name in ("caption_words", "training_images"))
    if words is None or images is None:
        return [dict(point) for point in points]
    price = prices.of_caption(words)
    return [{**point, _DOLLARS: min(point["samples"], images) * price} for point in points]


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of a twentieth of the curve."""
    window = np.ones(max(1, len(values) // 20))
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
