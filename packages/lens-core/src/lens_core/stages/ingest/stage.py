"""The ingest stage: a source of images becomes shards; what is dropped is written down with its reason.

An image that several files hold is stored once, because its key is the hash of its bytes. Nothing stops at a bad file:
each is reported by name and reason in `drops.jsonl`, and the rest goes on.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from lens_core.errors import ImageError, LensError, StorageError
from lens_core.images import Candidate
from lens_core.storage.shards import ImageRow, ShardWriter, image_key

if TYPE_CHECKING:
    from lens_core.contracts import Filter, ImageRecord
    from lens_core.pipeline.context import StageContext
    from lens_core.registry import Registry
    from lens_core.stages.ingest.config import IngestStageConfig

__all__ = ["fingerprint", "run"]

_SHOWN_DROPS = 20


def run(config: IngestStageConfig, context: StageContext) -> dict[str, Any]:
    """Bring the images in.

    Raises:
        LensError: the source is empty or cannot be read, or nothing is left of it.
    """
    dataset = context.registry.build("datasets", config.source, base=context.base, seed=context.seed)
    filters = [(item.type, context.registry.build("filters", item)) for item in config.filters]
    context.progress.start(len(dataset) if hasattr(dataset, "__len__") else None, "images")
    keys: dict[str, str] = {}
    drops: list[dict[str, str]] = []
    seen = 0
    with ShardWriter(context.output) as writer:
        for seen, record in enumerate(dataset, start=1):
            row, step, reason = _examine(record, filters)
            if row is not None and row.key in keys:
                step, reason = "duplicate", f"it has the same bytes as {keys[row.key]}"
            if row is None or reason:
                drops.append({"name": record.name, "step": step, "reason": reason})
                if len(drops) <= _SHOWN_DROPS:
                    context.progress.note(f"dropped {record.name}: {reason}")
            else:
                keys[row.key] = record.name
                writer.add(row)
            if seen % 64 == 0:
                context.progress.update(seen, dropped=len(drops))
                if context.should_stop():
                    raise KeyboardInterrupt
    if len(drops) > _SHOWN_DROPS:
        context.progress.note(f"dropped {len(drops) - _SHOWN_DROPS} more; all of them are in drops.jsonl")
    if not keys:
        what = (
            f"all {seen} images were dropped; the first: {drops[0]['name']}: {drops[0]['reason']}" if drops else "empty"
        )
        raise LensError(f"{context.name}: the source {config.source.type!r} leaves nothing to work with: {what}")
    context.output.write_text("drops.jsonl", "".join(json.dumps(drop, ensure_ascii=False) + "\n" for drop in drops))
    return {"seen": seen, "images": len(keys), "dropped": len(drops), "dropped_by": Counter(d["step"] for d in drops)}


def fingerprint(config: IngestStageConfig, *, registry: Registry, base: str, seed: int) -> str:
    """What the source says of its own state, so that new files in a folder are noticed."""
    return str(registry.build("datasets", config.source, base=base, seed=seed).fingerprint())


def _examine(record: ImageRecord, filters: list[tuple[str, Filter]]) -> tuple[ImageRow | None, str, str]:
    """The row to store, or the step that drops it and why."""
    try:
        data = record.read()
    except (OSError, StorageError) as error:
        return None, "read", f"it cannot be read ({error})"
    candidate = Candidate(record.name, data)
    step = "header"
    try:
        info = candidate.info
        for step, filter_ in filters:
            reason = filter_.check(candidate)
            if reason:
                return None, step, reason
    except ImageError as error:
        return None, step, str(error)
    row = ImageRow(
        key=image_key(data),
        name=record.name,
        data=data,
        width=info.width,
        height=info.height,
        format=info.format,
        licence=record.licence,
        source_url=record.source_url,
        metadata=record.metadata,
    )
    return row, "", ""
