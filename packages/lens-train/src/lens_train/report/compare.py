"""The page that sets training runs side by side: what they cost, how they fared, and in which settings they differ."""

from __future__ import annotations

import json
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from lens_core.errors import ArtifactError
from lens_train.loop.metrics import METRICS
from lens_train.report.charts import ARM_COLOURS, data_url, loss_chart, metrics_of
from lens_train.report.template import render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lens_core.storage.artifacts import Artifact

__all__ = ["compare_page", "differences"]

_ACROSS = ("step", "images", "flops")


def compare_page(models: Mapping[str, Artifact]) -> str:
    """The page.

    Args:
        models: what train stages made, by the name that each is shown under.

    Raises:
        ArtifactError: one was not made by a train stage.
    """
    for model in models.values():
        if model.type != "model" or METRICS not in {file.path for file in model.files}:
            raise ArtifactError(f"{model.url} ({model.type}) is no model of a train stage: it has no {METRICS}")
    colours = dict(zip(models, ARM_COLOURS * (1 + len(models) // len(ARM_COLOURS)), strict=False))
    return render(
        "compare.html.j2",
        title=f"{len(models)} training runs",
        runs={name: _row(model) for name, model in models.items()},
        colours=colours,
        losses=loss_chart(models, colours, across=_ACROSS, legend=False),
        validation=loss_chart(models, colours, metric="val_loss", across=_ACROSS, legend=False),
        grids={name: grid for name, model in models.items() if (grid := _last_grid(model))},
        settings=differences([_settings(model) for model in models.values()]),
    )


def differences(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same everywhere: the dotted key, and each one's value as JSON, "–" where absent."""
    flat = [dict(_flat("", one)) for one in settings]
    keys = sorted({key for one in flat for key in one})
    rows = [(key, [one.get(key, "–") for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _settings(model: Artifact) -> dict[str, Any]:
    made_from = {parent["name"]: parent["hash"][:12] for parent in model.manifest["parents"]}
    return {**model.config, "seed of the run": model.manifest.get("seed"), "made from": made_from}


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, inner)
    else:
        yield prefix, json.dumps(value, ensure_ascii=False)


def _row(model: Artifact) -> dict[str, Any]:
    """What a run cost and how it fared; shares are medians or means of its lines of metrics, None where it has none."""
    stats, lines = model.stats, metrics_of(model)

    def over(name: str, how: Callable[[list[float]], float]) -> float | None:
        found = [line[name] for line in lines if line.get(name) is not None]
        return how(found) if found else None

    scores = {
        name.removeprefix("score_"): over(name, lambda seen: seen[-1])
        for name in dict.fromkeys(name for line in lines for name in line if name.startswith("score_"))
    }
    return {
        **{name: stats[name] for name in ("steps", "images", "training_flops", "parameters", "seconds", "skipped")},
        "ranks": stats.get("ranks", 1),
        "loss": over("loss", lambda seen: fmean(seen[-max(1, len(seen) // 10) :])),
        "val_loss": over("val_loss", lambda seen: seen[-1]),
        "scores": scores,
        "images_per_s": stats["images"] / max(stats["seconds"], 1e-9),
        "memory_gb": over("memory_gb", max),
        **{name: over(name, median) for name in ("mfu", "hfu")},
        **{name: over(name, fmean) for name in ("padding", "data_wait", "encoder_share")},
    }


def _last_grid(model: Artifact) -> str | None:
    grids = sorted(file.path for file in model.files if file.path.startswith("samples/"))
    return data_url(model.read_bytes(grids[-1]), "image/png") if grids else None
