"""Charts as SVG, drawn by matplotlib without a display, for a page that loads nothing."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from lens_train.loop.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lens_core.storage.artifacts import Artifact

__all__ = ["ARM_COLOURS", "accuracy_chart", "data_url", "loss_chart", "metrics_of"]

ARM_COLOURS = ("#b3541e", "#1f6f8b", "#5b8c3a", "#7b4b94", "#8a6d1d", "#50617a")
_GREY = "#7a8088"
_ACROSS = {"step": ("steps", 1.0), "images": ("thousand images", 1e3), "flops": ("training TFLOP", 1e12)}


def loss_chart(
    models: Mapping[str, Artifact],
    colours: Mapping[str, str],
    *,
    metric: str = "loss",
    across: Sequence[str] = ("flops", "images"),
    legend: bool = True,
) -> str | None:
    """Losses against what they cost, a line a model; a data URL, or None where no model has enough of them.

    Args:
        models: by the name that they are shown under.
        colours: of each model, by name.
        metric: which loss; that of training is smoothed.
        across: what it is drawn against: step, images, flops.
        legend: whether names stand in the chart.
    """
    curves = []
    for name, model in models.items():
        lines = [line for line in metrics_of(model) if line.get(metric) is not None]  # skipped steps have no loss
        if len(lines) > 2:
            curves.append((name, lines))
    if not curves:
        return None
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, len(across), sharey=True)
    for axis, key in zip(axes, across, strict=True):
        label, scale = _ACROSS[key]
        for name, lines in curves:
            x, y = [line[key] / scale for line in lines], [line[metric] for line in lines]
            axis.plot(x, _smooth(y) if metric == "loss" else y, color=colours[name], label=name, linewidth=1.8)
        axis.set_xlabel(label)
        axis.set_yscale("log")
        _plain(axis)
    axes[0].set_ylabel("loss (smoothed)" if metric == "loss" else metric)
    if legend:
        axes[0].legend(frameon=False, labelcolor=_GREY)
    return _svg(figure)


def metrics_of(model: Artifact) -> list[dict[str, Any]]:
    """The lines of metrics that a model was trained with."""
    return [json.loads(line) for line in model.read_bytes(METRICS).decode().splitlines()]


def accuracy_chart(
    arms: dict[str, dict[str, float]],
    intervals: dict[str, dict[str, tuple[float, float]]],
    colours: Mapping[str, str],
) -> str:
    """Accuracy by skill, a bar an arm, with intervals; a data URL.

    Args:
        arms: by arm, accuracy by skill, 0…1.
        intervals: by arm, (low, high) by skill.
        colours: of each arm, by name.
    """
    skills = list(dict.fromkeys(skill for values in arms.values() for skill in values))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / max(1, len(arms))
    for number, (name, values) in enumerate(arms.items()):
        x = [place - 0.4 + width * (number + 0.5) for place in range(len(skills))]
        y = [100 * values.get(skill, 0.0) for skill in skills]
        spans = [intervals[name].get(skill, (0.0, 0.0)) for skill in skills]
        below = [value - 100 * low for value, (low, _) in zip(y, spans, strict=True)]
        above = [100 * high - value for value, (_, high) in zip(y, spans, strict=True)]
        axis.bar(x, y, width * 0.92, color=colours[name], label=name)
        axis.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=_GREY, elinewidth=1, capsize=2)
    # An evaluator may name its skills as it likes: a dollar sign begins no formula.
    axis.set_xticks(range(len(skills)), skills, parse_math=False)
    axis.set_ylim(0, 105)
    axis.set_ylabel("right, %")
    axis.legend(frameon=False, labelcolor=_GREY, ncols=max(1, len(arms)), loc="upper right")
    _plain(axis)
    return _svg(figure)


def data_url(data: bytes, kind: str) -> str:
    """Bytes as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential average without the bias towards its start."""
    total, norm, out = 0.0, 0.0, []
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        out.append(total / norm)
    return out


def _plain(axis: object) -> None:
    # Grey reads on white and on black: the page may be shown in either.
    axis.tick_params(which="both", colors=_GREY, labelsize=9)  # type: ignore[attr-defined]
    axis.xaxis.label.set_color(_GREY)  # type: ignore[attr-defined]
    axis.yaxis.label.set_color(_GREY)  # type: ignore[attr-defined]
    axis.grid(axis="y", color=_GREY, alpha=0.25, linewidth=0.6)  # type: ignore[attr-defined]
    axis.set_axisbelow(True)  # type: ignore[attr-defined]
    for side, spine in axis.spines.items():  # type: ignore[attr-defined]
        spine.set_visible(side == "bottom")
        spine.set_color(_GREY)


def _svg(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return data_url(stream.getvalue(), "image/svg+xml")
