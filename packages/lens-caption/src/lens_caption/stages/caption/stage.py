"""The caption stage: a set of images gains a caption layer; what failed is listed with its reason."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from lens_caption.captioners.own import languages, seen_from
from lens_caption.engine.journal import Journal
from lens_caption.engine.run import caption_all
from lens_caption.quality.text import printable
from lens_caption.quality.watch import caption_watched
from lens_caption.scale.plan import Plan
from lens_core.contracts import ImageItem
from lens_core.errors import LensError
from lens_core.specs import load_dotted
from lens_core.storage.captions import CaptionRow, write_captions
from lens_core.storage.shards import ShardReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lens_caption.engine.budget import Amount
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
        MissingExtraError: the work is for a Ray cluster, and Ray is not installed.
        Stopped: the user asked for it, or the budget is used up; what is done is kept.
    """
    (images,) = context.inputs
    with contextlib.closing(ShardReader(images)) as reader:
        does = _alone if config.executor.type == "process" else _shared
        return does(config, context, reader)


def _alone(config: CaptionStageConfig, context: StageContext, reader: ShardReader) -> dict[str, Any]:
    """This process does it all, with one journal.

    Raises:
        LensError: machines that share the stage have begun it.
    """
    plan = Plan(config, context)
    if plan.begun():
        raise LensError(
            f"{context.name} was begun by machines that share it, and what they bought lies in {plan.url}: go on with "
            "the executor that it had ('leases' works for one machine, too), or remove that folder to buy it anew"
        )
    captioner = context.registry.build("captioners", seen_from(config.captioner, context.base))
    journal = Journal(context.state_dir / "journal.sqlite")
    context.progress.start(len(reader), "images")

    def fetch(key: str) -> ImageItem:
        row = reader.by_key(key)
        return ImageItem(key=row.key, data=row.data, metadata=row.metadata)

    keys = reader.columns["key"]
    try:
        ask = partial(caption_watched, config.watch) if config.watch else caption_all
        ask(keys, fetch, captioner, journal, context, settings=config.engine, batch_size=config.batch_size)
        outcomes = zip(reader.columns["name"], map(journal.get, keys), strict=True)
        return _publish(config, context, getattr(captioner, "layers", ()), outcomes, journal.spent())
    finally:
        captioner.close()
        journal.close()


def _shared(config: CaptionStageConfig, context: StageContext, reader: ShardReader) -> dict[str, Any]:
    """Several workers do it, this process among them or not; their segments are joined in the order of the images."""
    module = "ray_cluster:run" if config.executor.type == "ray" else "worker:work"
    load_dotted(f"lens_caption.scale.{module}", asked_by="the executor", extra="lens-caption[ray]")(config, context)
    plan = Plan(config, context)
    parts = plan.parts(reader)
    outcomes = (outcome for part in parts for outcome in plan.outcomes(part))
    named = zip(reader.columns["name"], outcomes, strict=True)
    return _publish(config, context, plan.facts(parts[0])[1], named, plan.spent(parts))


def _publish(
    config: CaptionStageConfig,
    context: StageContext,
    names: Sequence[str],
    outcomes: Iterable[tuple[str, CaptionOutcome | None]],
    spent: Amount,
) -> dict[str, Any]:
    """Write the layer and the list of failures; texts pass through one by one.

    Args:
        config: of the stage.
        context: of the stage.
        names: of the captioner's layers.
        outcomes: of each image its name and what became of it, in the order of the images.
        spent: on all of them.
    """
    layers, asked = _layers(config.layer, context.name, names), languages(config.captioner, context.base)
    by_status, reasons, totals = Counter[str](), Counter[str](), Counter[str]()
    lines: list[str] = []

    def rows() -> Iterator[CaptionRow]:
        for name, item in outcomes:
            assert item is not None, f"{name} was passed over"
            by_status[item.status] += 1
            totals["words"] += len(item.text.split())
            for fact in ("input_tokens", "output_tokens"):
                totals[fact] += int(item.provenance.get(fact, 0))
            if item.status != "ok":
                line = {"name": name, "key": item.key, "status": item.status, "detail": item.detail}
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
                reasons[f"{item.status}: {item.detail}"] += 1
                if len(lines) <= _SHOWN_FAILURES:
                    context.progress.note(printable(f"no caption for {name}: {item.status}: {item.detail}"))
            yield from _rows(item, layers, asked)

    write_captions(context.output, rows())
    if len(lines) > _SHOWN_FAILURES:
        context.progress.note(f"{len(lines) - _SHOWN_FAILURES} more without a caption; all are in failures.jsonl")
    if not by_status["ok"]:
        (reason, count), *_ = reasons.most_common(1) or [("", 0)]
        raise LensError(
            f"{context.name}: not one of {by_status.total()} images got a caption ({count} times {printable(reason)})"
        )
    context.output.write_text("failures.jsonl", "".join(lines))
    return {
        "captions": by_status["ok"],
        "failed": len(lines),
        "by_status": by_status,
        "words_mean": round(totals["words"] / by_status["ok"], 2),
        "input_tokens": totals["input_tokens"],
        "output_tokens": totals["output_tokens"],
        **({"usd": str(spent.usd)} if spent.usd else {}),
    }


def _layers(layer: str | None, stage: str, names: Sequence[str]) -> dict[str, str]:
    """What the captioner's layers are called in the table; one alone takes the name of the stage, or `layer`."""
    if len(names) <= 1:
        return {"": layer or stage}
    return {name: f"{layer}-{name}" if layer else name for name in names}


def _rows(item: CaptionOutcome, layers: Mapping[str, str], asked: Mapping[str, str]) -> Iterator[CaptionRow]:
    """A row for each layer; the bill of an answer stands in the first, so that sums over rows are right."""
    provenance = item.provenance
    for name, layer in layers.items():
        text, status, detail = item.layers.get(name, item.text), item.status, item.detail
        if status == "ok" and not text:
            status, detail = "empty", "the answer has nothing for this layer"
        language = {"asked_language": asked[name]} if name in asked else {}
        yield CaptionRow(
            key=item.key, layer=layer, text=text, status=status, detail=detail, provenance={**provenance, **language}
        )
        provenance = {fact: value for fact, value in item.provenance.items() if fact not in _BILL}
