"""Look at a source without decoding it: how many images there are, and how large they would be sent.

Only headers are read, the first 64 KiB of a file where the source can give them alone. Filters that need no more than
that are applied; the others are named, and what they would drop is still counted, so that the quote is too high rather
than too low. The same goes for duplicates among larger files.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from lens_core.config.base import ComponentConfig
from lens_core.errors import ConfigError, ImageError, LensError, StorageError
from lens_core.images import Candidate, header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_core.config.pipeline import Pipeline
    from lens_core.config.stage import StageConfig
    from lens_core.contracts import ImageInfo, ImageRecord
    from lens_core.registry import Registry

__all__ = ["Survey", "source_of", "survey"]

T = TypeVar("T")
_HEAD = 64 << 10
"""Bytes that are read of a file. Where the size stands behind a large profile or at the end, all of it is read."""


@dataclass(kw_only=True)
class Survey:
    """What headers say of a source.

    Args:
        sizes: width and height, and how many images have them.
        dropped: how many images each step would drop; "duplicate" and "header" are steps too.
        unchecked: filters that need pixels and were not applied.
        pilot: records drawn at random, for a pilot.
        total: images of the source, if only a sample of them was looked at.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unchecked: list[str] = field(default_factory=list)
    pilot: list[ImageRecord] = field(default_factory=list)
    total: int | None = None

    @property
    def images(self) -> int:
        """Images that would be captioned; estimated from the sample if there is one."""
        kept = self.sizes.total()
        seen = kept + self.dropped.total()
        return kept if self.total is None or not kept else max(kept, round(self.total * kept / seen))


def source_of(pipeline: Pipeline, stage: StageConfig) -> tuple[ComponentConfig, list[ComponentConfig]]:
    """The dataset behind a stage, and the filters between them, in order.

    Raises:
        ConfigError: there is no dataset there.
    """
    stages = {item.name: item for item in pipeline.stages}
    filters: list[ComponentConfig] = []
    current = stage
    while True:
        filters = [*getattr(current, "filters", ()), *filters]
        source: Any = getattr(current, "source", None)
        if isinstance(source, ComponentConfig):
            return source, filters
        if not current.sources:
            raise ConfigError(f"the stage {stage.name!r} does not come from a source of images", file=pipeline.file)
        current = stages[current.sources[0]]


def survey(
    pipeline: Pipeline,
    stage: StageConfig,
    registry: Registry,
    *,
    pilot: int = 0,
    sample: int | None = None,
    seed: int = 0,
) -> Survey:
    """Look at every image that a stage would caption, or at a random sample of them.

    Args:
        pipeline: the pipeline.
        stage: its caption stage.
        registry: where the dataset and the filters come from.
        pilot: how many records to draw for a pilot.
        sample: how many headers to read; None reads all. The names of all are still listed.
        seed: of both draws.

    Raises:
        LensError: the source cannot be read, or nothing of it would be captioned.
    """
    source, filter_configs = source_of(pipeline, stage)
    dataset = registry.build("datasets", source, base=pipeline.base, seed=pipeline.config.seed)
    # A filter with a model loads it when it is built, which is no use without pixels.
    heavy = [item.type for item in filter_configs if hasattr(item, "model")]
    filters = [(item.type, registry.build("filters", item)) for item in filter_configs if item.type not in heavy]
    records: Iterable[ImageRecord] = dataset
    found = Survey(unchecked=heavy)
    if sample is not None:
        drawn = _Draw[Any](sample, seed)
        for record in dataset:
            drawn.offer(record)
        records, found.total = drawn.items, drawn.seen
    keep = _Draw[Any](pilot, seed + 1)
    digests: set[bytes] = set()
    for record in records:
        step = _look(record, filters, digests, found)
        if step:
            found.dropped[step] += 1
        else:
            keep.offer(record)
    found.pilot = keep.items
    found.unchecked = list(dict.fromkeys(found.unchecked))
    if not found.sizes:
        why = ", ".join(f"{step} {count}" for step, count in found.dropped.most_common()) or "the source is empty"
        raise LensError(f"{stage.name}: there is no image to caption ({why})")
    return found


def _look(record: ImageRecord, filters: list[tuple[str, Any]], digests: set[bytes], found: Survey) -> str | None:
    """The step that drops a record, or None; what is kept is counted."""
    step = "header"
    try:
        candidate = _opened(record)
        for step, filter_ in filters:
            try:
                if filter_.check(candidate).reason:
                    return step
            except _NeedsMoreError:
                found.unchecked.append(step)
    except (OSError, StorageError):
        return "read"
    except ImageError:
        return step
    try:
        digest = hashlib.blake2b(candidate.data, digest_size=16).digest()
        if digest in digests:
            return "duplicate"
        digests.add(digest)
    except _NeedsMoreError:
        found.unchecked.append("duplicates")
    for _, filter_ in filters:
        with contextlib.suppress(_NeedsMoreError):
            getattr(filter_, "kept", lambda _: None)(candidate)
    found.sizes[candidate.info.width, candidate.info.height] += 1
    return None


def _opened(record: ImageRecord) -> _HeaderOnly:
    """The candidate, by the beginning of its file if that tells the size; raises `ImageError`, and as `read` does."""
    head, whole = record.head(_HEAD)
    try:
        return _HeaderOnly(record.name, head, header(head), whole=whole)
    except ImageError:
        if whole:
            raise
    data = record.read()
    return _HeaderOnly(record.name, data, header(data), whole=True)


class _NeedsMoreError(Exception):
    """A filter asked for pixels, or for bytes that were not read."""


class _HeaderOnly(Candidate):
    """A candidate whose pixels nobody gets to see, nor the bytes of which only the first were read."""

    def __init__(self, name: str, head: bytes, info: ImageInfo, *, whole: bool):
        super().__init__(name, head)
        self.__dict__["info"] = info
        if not whole:
            del self.data

    def __getattr__(self, name: str) -> NoReturn:
        raise _NeedsMoreError if name == "data" else AttributeError(name)

    def pixels(self) -> NoReturn:
        raise _NeedsMoreError

    def small(self) -> NoReturn:
        raise _NeedsMoreError


class _Draw(Generic[T]):
    """A fair draw of some items out of a stream of unknown length."""

    def __init__(self, count: int, seed: int):
        self.items: list[T] = []
        self.seen = 0
        self._count = count
        self._random = random.Random(seed)

    def offer(self, item: T) -> None:
        """Show one more item."""
        self.seen += 1
        if len(self.items) < self._count:
            self.items.append(item)
        elif (place := self._random.randrange(self.seen)) < self._count:
            self.items[place] = item
