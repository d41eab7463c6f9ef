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
    from collections.abc import Iterator, Mapping, Sequence

    from lens_caption.stages.caption.config import CaptionStageConfig
    from lens_core.contracts import CaptionOutcome
    from lens_core.pipeline.context import StageContext

__all__ = ["run"]

_SHOWN_FAILURES = 20
_BILL = {"input_tokens", "output_tokens", "cached_input_tokens", "cost_usd"}


def run(config: CaptionStageConfig, context: StageContext) -> dict[str, Any]:
    """Caption the images and write the layer.

    Raises:
        LensError: not a single image got a caption; the commonest reason is quoted.
        Stopped: the user asked for it, or the budget is used up; what is done is kept.
    """
    (images,) = context.inputs
    reader = ShardReader(images)
    captioner = context.registry.build("captioners", config.captioner)
    journal = Journal(context.state_dir / "journal.sqlite")
    context.progress.start(len(reader), "images")

    def fetch(key: str) -> ImageItem:
        row = reader.by_key(key)
        return ImageItem(key=row.key, data=row.data, metadata=row.metadata)

    names = dict(zip(reader.columns["key"], reader.columns["name"], strict=True))
    try:
        caption_all(
            list(names),
            fetch,
            captioner,
            journal,
            context,
            settings=config.engine,
            batch_size=config.batch_size,
        )
        return _publish(names, journal, context, _layers(config.layer, context.name, getattr(captioner, "layers", ())))
    finally:
        captioner.close()
        journal.close()
        reader.close()


def _publish(
    names: Mapping[str, str], journal: Journal, context: StageContext, layers: Mapping[str, str]
) -> dict[str, Any]:
    """Write the layer and the list of failures; texts pass through one by one."""
    by_status, reasons, totals = Counter[str](), Counter[str](), Counter[str]()
    lines: list[str] = []

    def rows() -> Iterator[CaptionRow]:
        for key, name in names.items():
            item = journal.get(key)
            assert item is not None, f"{key} was passed over"
            by_status[item.status] += 1
            totals["words"] += len(item.text.split())
            for fact in ("input_tokens", "output_tokens"):
                totals[fact] += int(item.provenance.get(fact, 0))
            if item.status != "ok":
                line = {"name": name, "key": key, "status": item.status, "detail": item.detail}
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
                reasons[f"{item.status}: {item.detail}"] += 1
                if len(lines) <= _SHOWN_FAILURES:
                    context.progress.note(f"no caption for {name}: {item.status}: {item.detail}")
            yield from _rows(item, layers)

    write_captions(context.output, rows())
    if len(lines) > _SHOWN_FAILURES:
        context.progress.note(f"{len(lines) - _SHOWN_FAILURES} more without a caption; all are in failures.jsonl")
    if not by_status["ok"]:
        (reason, count), *_ = reasons.most_common(1) or [("", 0)]
        raise LensError(f"{context.name}: not one of {len(names)} images got a caption ({count} times {reason})")
    context.output.write_text("failures.jsonl", "".join(lines))
    usd = journal.spent().usd
    return {
        "captions": by_status["ok"],
        "failed": len(lines),
        "by_status": by_status,
        "words_mean": round(totals["words"] / by_status["ok"], 2),
        "input_tokens": totals["input_tokens"],
        "output_tokens": totals["output_tokens"],
        **({"usd": str(usd)} if usd else {}),
    }


def _layers(layer: str | None, stage: str, asked: Sequence[str]) -> dict[str, str]:
    """What the captioner's layers are called in the table; one alone takes the name of the stage, or `layer`."""
    if len(asked) <= 1:
        return {"": layer or stage}
    return {name: f"{layer}-{name}" if layer else name for name in asked}


def _rows(item: CaptionOutcome, layers: Mapping[str, str]) -> Iterator[CaptionRow]:
    """A row for each layer; the bill of an answer stands in the first, so that sums over rows are right."""
    provenance = item.provenance
    for name, layer in layers.items():
        yield CaptionRow(
            key=item.key,
            layer=layer,
            text=item.layers.get(name, item.text),
            status=item.status,
            detail=item.detail,
            provenance=provenance,
        )
        provenance = {fact: value for fact, value in item.provenance.items() if fact not in _BILL}
