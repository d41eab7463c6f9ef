"""What an ablation finds, as a tidy table: a row for each observation of a cell, that is of an arm with a seed.

    accuracy                        share of an evaluator's prompts drawn right, by `skill` and prompt `style`, with
                                    `correct` and `n`
    loss, validation_loss           curves, at most 200 points each; `step`, `samples`, `tokens` and `flops` say where
    score                           a curve of each `skill`: the share drawn right while the model is trained
    distance                        from real images; `skill` says which distance
    parameters, training_images, training_flops, seconds, steps, samples, tokens
                                    of the training as a whole
    caption_words, caption_attributes, caption_bits
                                    per caption, of the layers trained on, where the stage that made them counts it

Of final values, `step` to `flops` are those of the end. `samples` counts images as often as they were seen, `tokens`
those of images and captions together. What does not apply is null.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lens_core.errors import ArtifactError
from lens_core.storage import urls
from lens_core.storage.artifacts import Artifact
from lens_train.loop.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["COLUMNS", "ROWS", "SCHEMA", "read_rows", "rows_bytes", "rows_of"]

ROWS = "rows.parquet"
SCHEMA = pa.schema(
    [
        pa.field("ablation", pa.string(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("skill", pa.string()),
        pa.field("style", pa.string()),
        pa.field("step", pa.int64()),
        pa.field("samples", pa.int64()),
        pa.field("tokens", pa.int64()),
        pa.field("flops", pa.float64()),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("correct", pa.int64()),
        pa.field("n", pa.int64()),
    ]
)
COLUMNS: tuple[str, ...] = tuple(SCHEMA.names)
_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class _Reached:
    """How far training was when something was measured."""

    step: int | None = None
    samples: int | None = None
    tokens: int | None = None
    flops: float | None = None


def rows_of(artifacts: Iterable[Artifact], *, ablation: str, arm: str, seed: int, key: str) -> pa.Table:
    """The rows of a cell.

    Args:
        artifacts: what the cell's stages made, in their order; those without numbers have no rows.
        ablation: name of the stage.
        arm: name of the arm.
        seed: of the cell.
        key: of the cell.

    Raises:
        ArtifactError: one is damaged.
    """
    cell = {"ablation": ablation, "arm": arm, "seed": seed, "key": key}
    rows = [cell | row for artifact in artifacts for row in _observations(artifact)]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def rows_bytes(table: pa.Table) -> bytes:
    """The Parquet file of some rows."""
    stream = io.BytesIO()
    pq.write_table(table, stream, write_page_checksum=True)
    return stream.getvalue()


def read_rows(source: Artifact | str) -> pa.Table:
    """The rows of an artefact of type "ablation", or of one such Parquet file.

    Args:
        source: the artefact, or path or URL of the file.

    Raises:
        ArtifactError: it is damaged, or holds something else.
        StorageError: it cannot be read.
    """
    url = source.url_of(ROWS) if isinstance(source, Artifact) else source
    try:
        table = pq.read_table(pa.BufferReader(urls.read_bytes(url)), page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{url} is no Parquet file, or a damaged one ({reason})") from error
    if not table.schema.equals(SCHEMA):
        strange = next((field.name for field in SCHEMA if field not in table.schema), "the order")
        raise ArtifactError(f"{url} does not hold the rows of an ablation: {strange} is not as it should be")
    return table


def _observations(artifact: Artifact) -> Iterator[dict[str, Any]]:
    stage = {"stage": artifact.name}
    if artifact.type == "model" and artifact.config["type"] == "train":
        found = [*_curves(artifact), *_training(artifact), *_captions(artifact)]
    elif artifact.type == "scores":
        found = list(_scores(artifact))
    else:
        found = []
    yield from (stage | row for row in found)


def _curves(model: Artifact) -> Iterator[dict[str, Any]]:
    """Losses and scores on the way, each thinned by itself; its first and last points stay."""
    curves: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for text in model.read_bytes(METRICS).splitlines():
        line = json.loads(text)
        for name, value in line.items():
            which = _curve(name)
            if which and value is not None:
                metric, skill = which
                row = {"metric": metric, "skill": skill, "value": value, **asdict(_at(line))}
                curves.setdefault(which, []).append(row)
    for points in curves.values():
        for place in np.unique(np.linspace(0, len(points) - 1, min(len(points), _POINTS)).round().astype(int)):
            yield points[place]


def _curve(name: str) -> tuple[str, str | None] | None:
    """The metric, and the skill, of a field of `metrics.jsonl`; None for those that are no curves of an ablation."""
    if name.startswith("score_"):
        return "score", name.removeprefix("score_")
    return {"loss": ("loss", None), "val_loss": ("validation_loss", None)}.get(name)


def _at(line: Mapping[str, Any]) -> _Reached:
    return _Reached(
        step=line["step"],
        samples=line["images"],
        tokens=line["image_tokens"] + line["text_tokens"],
        flops=line["flops"],
    )


def _end(model: Artifact) -> _Reached:
    """Where a model's training ended; nowhere, if something else made it."""
    stats = model.stats
    if "steps" not in stats:
        return _Reached()
    return _Reached(
        step=stats["steps"],
        samples=stats["images"],
        tokens=stats["image_tokens"] + stats["text_tokens"],
        flops=stats["training_flops"],
    )


def _training(model: Artifact) -> Iterator[dict[str, Any]]:
    end = _end(model)
    told = {name: model.stats[name] for name in ("parameters", "training_images", "training_flops", "seconds")}
    for metric, value in {**told, "steps": end.step, "samples": end.samples, "tokens": end.tokens}.items():
        yield {"metric": metric, "value": value, **asdict(end)}


def _captions(model: Artifact) -> Iterator[dict[str, Any]]:
    """What the captions say that a model was trained on, as far as the stage that made them has counted it."""
    (captions,) = [parent for parent in model.parents if parent.type == "captions"]
    layers = captions.stats.get("layers")
    if not isinstance(layers, dict):
        found = {"caption_words": [(1, captions.stats.get("words_mean"))]}
    else:
        chosen = model.config.get("layers") or list(layers)
        found = {"caption_words": [], "caption_attributes": [], "caption_bits": []}
        for measured in (layers[name] for name in chosen if name in layers):
            count, scene = measured["captions"], measured.get("scene", {})
            found["caption_words"].append((count, measured.get("words", {}).get("mean")))
            found["caption_attributes"].append((count, measured.get("attributes_per_caption")))
            found["caption_bits"].append((count, scene.get("bits", {}).get("mean")))
    for metric, counted in found.items():
        known = [(count, value) for count, value in counted if value is not None]
        if known:
            total = sum(count for count, _ in known)
            yield {
                "metric": metric,
                "value": sum(count * value for count, value in known) / total,
                **asdict(_end(model)),
            }


def _scores(scores: Artifact) -> Iterator[dict[str, Any]]:
    """Shares drawn right, and distances. A stage that scores several models is told as STAGE/MODEL."""
    models = {parent.name: parent for parent in scores.parents if parent.type == "model"}
    told = scores.read_json("scores.json")
    for entry in [*told.get("cells", ()), *told.get("distances", ())]:
        name = entry["model"]
        row = {"stage": f"{scores.name}/{name}"} if len(models) > 1 else {}
        row |= {"n": entry.get("n"), **asdict(_end(models[name]))}
        if "distance" in entry:
            yield row | {"metric": "distance", "skill": entry["distance"], "value": entry["value"]}
        else:
            own = {field: entry[field] for field in ("skill", "style", "correct")}
            yield row | {"metric": "accuracy", "value": entry["accuracy"], **own}
