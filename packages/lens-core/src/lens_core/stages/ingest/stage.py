"""The ingest stage: a source of images becomes shards; what is dropped is written down with its reason.

An image that several files hold is stored once, because its key is the hash of its bytes. Nothing stops at a bad file:
each is reported by name and reason in `drops.jsonl`, and the rest goes on. `ledger.parquet` holds every filter's score
of every image.

A stage that was killed begins again at the first image, in the same order, so filters that compare images decide as if
nothing had happened; what was measured before is read from a file beside the run instead of being measured again.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from lens_core.contracts import Verdict
from lens_core.datasets import files
from lens_core.errors import ImageError, LensError, StorageError
from lens_core.images import Candidate
from lens_core.stages.ingest.ledger import LEDGER, Ledger
from lens_core.stages.ingest.measures import Measures
from lens_core.storage.shards import ImageRow, ShardWriter, image_key

if TYPE_CHECKING:
    from lens_core.contracts import Filter, ImageRecord
    from lens_core.pipeline.context import StageContext
    from lens_core.registry import Registry
    from lens_core.stages.ingest.config import IngestStageConfig

__all__ = ["LEDGER", "fingerprint", "run"]

_SHOWN_DROPS = 20


def run(config: IngestStageConfig, context: StageContext) -> dict[str, Any]:
    """Bring the images in.

    Raises:
        LensError: the source is empty or cannot be read, or nothing is left of it.
    """
    dataset = context.registry.build("datasets", config.source, base=context.base, seed=context.seed)
    filters = _named([(item.type, context.registry.build("filters", item)) for item in config.filters])
    context.progress.start(len(dataset) if hasattr(dataset, "__len__") else None, "images")
    measures = Measures(context.state_dir.with_name(f"{context.name}.measures"))
    drops: list[dict[str, str]] = []
    seen = 0
    with contextlib.closing(measures), Ledger(context.output) as ledger, ShardWriter(context.output) as writer:
        examiner = _Examiner(filters, measures, ledger, score_all=config.score_all)
        for seen, record in enumerate(dataset, start=1):
            row, step, reason = examiner.examine(record)
            if row is None:
                drops.append({"name": record.name, "step": step, "reason": reason})
                if len(drops) <= _SHOWN_DROPS:
                    context.progress.note(f"dropped {record.name}: {reason}")
            else:
                writer.add(row)
            if seen % 64 == 0:
                measures.commit()
                context.progress.update(seen, dropped=len(drops))
                context.stop_if_asked()
    if len(drops) > _SHOWN_DROPS:
        context.progress.note(f"dropped {len(drops) - _SHOWN_DROPS} more; all of them are in drops.jsonl")
    if len(drops) == seen:
        what = (
            f"all {seen} images were dropped; the first: {drops[0]['name']}: {drops[0]['reason']}" if drops else "empty"
        )
        raise LensError(f"{context.name}: the source {config.source.type!r} leaves nothing to work with: {what}")
    context.output.write_text("drops.jsonl", "".join(json.dumps(drop, ensure_ascii=False) + "\n" for drop in drops))
    return {
        "seen": seen,
        "images": seen - len(drops),
        "dropped": len(drops),
        "dropped_by": Counter(drop["step"] for drop in drops),
        "filters": {name: ledger.steps[name].summary() for name, _ in filters if name in ledger.steps},
    }


def fingerprint(config: IngestStageConfig, *, registry: Registry, base: str, seed: int) -> str:
    """What the source and the filters' models say of their own state, so that new files are noticed."""
    source = str(registry.build("datasets", config.source, base=base, seed=seed).fingerprint())
    models = [item.fingerprint() for item in config.filters if hasattr(item, "fingerprint")]
    return " ".join([source, *models])


class _Examiner:
    """Filters in their order, and what they have said and measured."""

    def __init__(
        self, filters: list[tuple[str, Filter]], measures: Measures, ledger: Ledger, *, score_all: bool = False
    ):
        self._score_all = score_all
        self._ledger = ledger
        self._filters = filters
        self._measures = measures
        self._names: dict[str, str] = {}

    def examine(self, record: ImageRecord) -> tuple[ImageRow | None, str, str]:
        """The row to store, or the step that drops it and why."""
        try:
            data = record.read()
        except (OSError, StorageError) as error:
            return self._drop(None, record, "read", files.as_text(f"it cannot be read ({error})"))
        key = image_key(data)
        candidate = Candidate(record.name, data)
        known = self._measures.of(key)
        candidate.measures.update(known)
        try:
            info = candidate.info
        except ImageError as error:
            return self._drop(key, record, "header", str(error))
        dropped = self._judge(key, candidate)
        self._measures.put(key, {name: candidate.measures[name] for name in candidate.measures.keys() - known})
        if dropped is not None:
            return None, *dropped
        if key in self._names:
            return self._drop(key, record, "duplicate", f"it has the same bytes as {self._names[key]}")
        self._names[key] = record.name
        for _, filter_ in self._filters:
            if hasattr(filter_, "kept"):
                filter_.kept(candidate)
        row = ImageRow(
            key=key,
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

    def _judge(self, key: str, candidate: Candidate) -> tuple[str, str] | None:
        """The first filter that drops the image and why, or None."""
        dropped = None
        for step, filter_ in self._filters:
            verdict = self._check(key, step, filter_, candidate)
            if verdict.reason is not None and dropped is None:
                dropped = step, verdict.reason
                if not self._score_all:
                    break
        return dropped

    def _check(self, key: str, step: str, filter_: Filter, candidate: Candidate) -> Verdict:
        started = time.perf_counter()
        try:
            verdict = filter_.check(candidate)
        except ImageError as error:
            verdict = Verdict(reason=str(error))
        self._ledger.add(key, candidate.name, step, verdict, time.perf_counter() - started)
        return verdict

    def _drop(self, key: str | None, record: ImageRecord, step: str, reason: str) -> tuple[None, str, str]:
        self._ledger.add(key, record.name, step, Verdict(reason=reason))
        return None, step, reason


def _named(filters: list[tuple[str, Filter]]) -> list[tuple[str, Filter]]:
    """Filters of the same type are told apart by number: `nsfw`, `nsfw-2`."""
    counts: Counter[str] = Counter()
    named = []
    for type_, filter_ in filters:
        counts[type_] += 1
        named.append((type_ if counts[type_] == 1 else f"{type_}-{counts[type_]}", filter_))
    return named
