"""The caption stage: a set of images gains a caption layer; what failed is listed with its reason."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from lens_caption.engine.journal import Journal
from lens_caption.engine.run import caption_all
from lens_core.contracts import ImageItem
from lens_core.errors import LensError
from lens_core.storage.captions import CaptionRow, write_captions
from lens_core.storage.shards import ShardReader

if TYPE_CHECKING:
    from lens_caption.stages.caption.config import CaptionStageConfig
    from lens_core.pipeline.context import StageContext

__all__ = ["run"]

_SHOWN_FAILURES = 20


def run(config: CaptionStageConfig, context: StageContext) -> dict[str, Any]:
    """Caption the images and write the layer.

    Raises:
        LensError: not a single image got a caption; the commonest reason is quoted.
        Stopped: the user asked for it; what is done is kept.
    """
    (images,) = context.inputs
    reader = ShardReader(images)
    captioner = context.registry.build("captioners", config.captioner)
    journal = Journal(context.state_dir / "journal.sqlite")
    context.progress.start(len(reader), "images")
    items = (ImageItem(key=row.key, data=row.data, metadata=row.metadata) for row in reader)
    try:
        outcomes = caption_all(items, captioner, journal, context, batch_size=config.batch_size)
    finally:
        captioner.close()
        journal.close()
        reader.close()
    names = dict(zip(reader.columns["key"], reader.columns["name"], strict=True))
    ordered = [outcomes[key] for key in names]
    failures = [item for item in ordered if item.status != "ok"]
    for item in failures[:_SHOWN_FAILURES]:
        context.progress.note(f"no caption for {names[item.key]}: {item.status}: {item.detail}")
    if len(failures) > _SHOWN_FAILURES:
        context.progress.note(f"{len(failures) - _SHOWN_FAILURES} more without a caption; all are in failures.jsonl")
    if len(failures) == len(ordered):
        (reason, count), *_ = Counter(f"{item.status}: {item.detail}" for item in failures).most_common(1)
        raise LensError(f"{context.name}: not one of {len(ordered)} images got a caption ({count} times {reason})")
    layer = config.layer or context.name
    write_captions(
        context.output,
        (
            CaptionRow(
                key=item.key,
                layer=layer,
                text=item.text,
                status=item.status,
                detail=item.detail,
                provenance=item.provenance,
            )
            for item in ordered
        ),
    )
    lines = (
        {"name": names[item.key], "key": item.key, "status": item.status, "detail": item.detail} for item in failures
    )
    context.output.write_text("failures.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    words = [len(item.text.split()) for item in ordered if item.status == "ok"]
    return {
        "captions": len(words),
        "failed": len(failures),
        "by_status": Counter(item.status for item in ordered),
        "words_mean": round(sum(words) / len(words), 2),
        "input_tokens": sum(int(item.provenance.get("input_tokens", 0)) for item in ordered),
        "output_tokens": sum(int(item.provenance.get("output_tokens", 0)) for item in ordered),
    }
