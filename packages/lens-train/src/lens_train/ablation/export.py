"""The findings for machines: one JSON file with all of them, and every accuracy as a row of CSV."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens_train.ablation.findings import Axis, Comparison, Findings, Noise, Result

__all__ = ["as_csv", "as_json"]


def as_csv(findings: Findings) -> str:
    """Every accuracy, and its difference to the baseline."""
    rows = [_row(made, result) for made in findings.comparisons for result in made.results.values()]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_json(findings: Findings) -> dict[str, Any]:
    """Everything; a number that is not finite is told as a text: "inf", "nan"."""
    told = {
        "format_version": 1,
        "comparisons": [_comparison(made) for made in findings.comparisons],
        "axes": [_axis(axis) for axis in findings.axes],
        "noise": [_noise(noise) for noise in findings.noise],
    }
    return _finite(told)  # type: ignore[no-any-return]


def _row(made: Comparison, result: Result) -> dict[str, Any]:
    own, apart = result.accuracy, result.difference
    row = {
        "ablation": made.ablation.name,
        "arm": result.arm,
        "prompts": result.prompts,
        "skill": result.skill,
        "seeds": own.seeds,
        "accuracy": own.value,
        "low": own.low,
        "high": own.high,
        "interval_over": own.basis,
    }
    if apart is None:
        return row
    return row | {
        "baseline": made.baselines[result.arm],
        "difference": apart.value,
        "difference_low": apart.low,
        "difference_high": apart.high,
        "test": apart.basis,
        "p": apart.p,
        "p_holm": result.p,
    }


def _comparison(made: Comparison) -> dict[str, Any]:
    return {
        "ablation": made.ablation.name,
        "baselines": dict(made.baselines),
        "equal": {arm: dict(given) for arm, given in made.ablation.equal.items()},
        "training_flops_apart": made.flops_apart(),
        "caption_dollars": dict(made.dollars),
        "results": [asdict(result) for result in made.results.values()],
    }


def _axis(axis: Axis) -> dict[str, Any]:
    kinds = ((axis.config.long, axis.long), (axis.config.short, axis.short))
    return {
        "label": axis.config.label,
        "metric": axis.config.metric,
        "skill": axis.skill,
        "kinds": [
            {"name": kind.name, "arms": list(kind.arms), "points": [asdict(point) for point in points]}
            for kind, points in kinds
        ],
        "factor": asdict(axis.factor),
    }


def _noise(noise: Noise) -> dict[str, Any]:
    return {
        "label": noise.config.label,
        "skill": noise.skill,
        "points": [asdict(point) for point in noise.points],
        "rival": {"arm": noise.config.rival, "values": list(noise.rival_values)},
        "gain": asdict(noise.gain) | {"p_holm": noise.gain_p},
        "cancelled": asdict(noise.cancelled),
    }


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN, and no keys but texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
