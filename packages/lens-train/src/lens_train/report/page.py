"""The page about a run: headline, gallery, accuracy, curves, and where everything came from."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lens_core.errors import ImageError
from lens_core.images import decode, fit
from lens_core.storage.captions import read_captions
from lens_core.storage.shards import ShardReader
from lens_train.report.charts import ARM_COLOURS, accuracy_chart, data_url, loss_chart
from lens_train.report.summary import ancestors
from lens_train.report.template import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.storage.artifacts import Artifact
    from lens_train.stages.report.config import ReportStageConfig

__all__ = ["render_page"]

_SHOWN_SIDE = 128


def render_page(config: ReportStageConfig, inputs: Sequence[Artifact], summary: dict[str, Any]) -> str:
    """The report as one HTML file."""
    models = [artifact for artifact in inputs if artifact.type == "model"]
    arms = summary["arms"]
    colours = dict(zip(arms, ARM_COLOURS * 9, strict=False))
    own = {name: arm["accuracy"].get(arm["own_style"], {}) for name, arm in arms.items()}
    own = {name: cells for name, cells in own.items() if cells}
    return render(
        "report.html.j2",
        title=config.title,
        summary=summary,
        arms=arms,
        colours=colours,
        skills=list(dict.fromkeys(s for arm in arms.values() for cells in arm["accuracy"].values() for s in cells)),
        styles=list(dict.fromkeys(style for arm in arms.values() for style in arm["accuracy"])),
        accuracy=accuracy_chart(
            {name: {s: cell["accuracy"] for s, cell in cells.items()} for name, cells in own.items()},
            {name: {s: (cell["low"], cell["high"]) for s, cell in cells.items()} for name, cells in own.items()},
            colours,
        )
        if own
        else None,
        losses=loss_chart({model.name: model for model in models}, colours),
        gallery=_gallery([artifact for artifact in inputs if artifact.type == "samples"]),
        captioned=_captioned(models, config.captions_shown),
        lineage=ancestors(inputs),
    )


def _gallery(samples: list[Artifact]) -> list[dict[str, Any]]:
    """One entry per prompt and noise: what was asked, and each model's picture with what it was told."""
    rows: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for artifact in samples:
        for entry in artifact.read_json("samples.json")["samples"]:
            rows.setdefault((entry["prompt"], entry["seed"], entry["index"]), []).append(
                {
                    "model": entry["model"],
                    "told": entry["rewritten_prompt"],
                    "url": data_url(artifact.read_bytes(entry["path"]), "image/png"),
                }
            )
    return [{"prompt": prompt, "pictures": pictures} for (prompt, *_), pictures in rows.items()]


def _captioned(models: list[Artifact], count: int) -> list[dict[str, Any]]:
    """The first training images, each with what every arm was told of it."""
    layers: dict[str, dict[str, str]] = {}
    order: list[str] = []
    images: Artifact | None = None
    for model in models:
        captions = model.parent("captions")
        rows = [row for row in read_captions(captions) if row.status == "ok"]
        layers[captions.name] = {row.key: row.text for row in rows}
        order = order or [row.key for row in rows]
        images = images or captions.parent("images")
    if images is None:
        return []
    reader = ShardReader(images)
    shown: list[dict[str, Any]] = []
    for row in (reader.by_key(key) for key in order if reader.has(key)):
        if len(shown) == count:
            break
        try:
            picture = _thumbnail(row.data)
        except ImageError:
            continue  # training left it out as well
        texts = {layer: known.get(row.key, "") for layer, known in layers.items()}
        shown.append({"url": data_url(picture, "image/png"), "name": row.name, "texts": texts})
    reader.close()
    return shown


def _thumbnail(data: bytes) -> bytes:
    pixels = decode(data)
    if max(pixels.shape[:2]) > _SHOWN_SIDE:
        scale = _SHOWN_SIDE / max(pixels.shape[:2])
        height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
        pixels = np.asarray(fit(pixels, height, width))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
