"""The parts of a caption stage, and the shared folder where their outcomes are published.

    KEY/part               images of a part, as the first worker found it in its settings; it stays so
    KEY/leases/            who works on which part (`lens_core.storage.leases`)
    KEY/grants/            what was drawn from the budget (`allowance.py`)
    KEY/segments/000017    the outcomes of a part, in the order of its images; a Parquet file, created exclusively
    KEY/left/000017.ID     what the worker ID had of a part when it stopped, so that the next one need not buy it again

KEY stands for everything that decides what the outcomes are: the images, the settings, and a recipe of one's own.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lens_caption.captioners.own import fingerprint
from lens_caption.engine.budget import NOTHING, Amount
from lens_caption.scale.allowance import Draws
from lens_core.config.base import config_hash
from lens_core.contracts import CaptionOutcome
from lens_core.errors import ArtifactError
from lens_core.storage import urls
from lens_core.storage.artifacts import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lens_caption.stages.caption.config import CaptionStageConfig
    from lens_core.pipeline.context import StageContext
    from lens_core.storage.shards import ShardReader

__all__ = ["Part", "Plan", "parts_of"]

_COLUMNS = ("key", "status", "text", "detail", "provenance", "layers")
_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in _COLUMNS])


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive images of one shard: those from number `start` to before `stop`."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def parts_of(shards: Sequence[str], most: int) -> list[Part]:
    """Cut images into parts.

    Args:
        shards: of each image, the shard that holds it.
        most: images of a part.
    """
    parts: list[Part] = []
    start = 0
    for stop in range(1, len(shards) + 1):
        if stop == len(shards) or stop - start == most or shards[stop] != shards[start]:
            parts.append(Part(name=f"{len(parts):06d}", start=start, stop=stop))
            start = stop
    return parts


class Plan:
    """What is published of a stage's parts.

    Args:
        config: of the stage.
        context: of the stage, with one set of images as its input.
    """

    ALONE = "alone-"
    """How the ID of a process begins that worked on the stage alone, before machines shared it."""

    def __init__(self, config: CaptionStageConfig, context: StageContext):
        (images,) = context.inputs
        settings = {"config": config.model_dump(mode="json"), "images": images.hash}
        recipe = fingerprint(config, registry=context.registry, base=context.base, seed=context.seed)
        self.key = config_hash({**settings, "recipe": recipe} if recipe else settings)[:16]
        self.url = urls.join(context.work_url, self.key)
        self.grants_url = urls.join(self.url, "grants")
        self._manifest = urls.join(context.run_url, context.name, MANIFEST)
        self._executor = config.executor

    def begun(self) -> bool:
        """Whether something of it is bought, or may be."""
        return not {"grants", "left", "segments"}.isdisjoint(urls.ls(self.url))

    def parts(self, reader: ShardReader) -> list[Part]:
        """All parts, in the order of the images."""
        assert self._executor.type != "process"
        size = urls.join(self.url, "part")
        urls.create_exclusive(size, str(self._executor.part).encode())
        return parts_of(reader.columns["shard"], int(urls.read_text(size)))

    def finished(self) -> bool:
        """Whether the stage is done. What is published is removed only after that: look here last."""
        return urls.exists(self._manifest)

    def published(self) -> set[str]:
        """Names of the parts that are published."""
        return {name for name in urls.ls(urls.join(self.url, "segments")) if not name.startswith(".")}

    def is_published(self, part: Part) -> bool:
        """Whether the part is published."""
        return urls.exists(self._segment(part))

    def publish(self, part: Part, outcomes: Iterable[CaptionOutcome], *, spent: Amount, layers: Sequence[str]) -> bool:
        """Publish a part; False if another worker was first, whose outcomes then count.

        Args:
            part: which.
            outcomes: one for each of its images, in their order.
            spent: on it.
            layers: the layers that the captioner gives.
        """
        facts = {"usd": _usd(spent), "layers": list(layers)}
        return urls.create_exclusive(self._segment(part), _table(outcomes, facts))

    def outcomes(self, part: Part) -> list[CaptionOutcome]:
        """The outcomes of a published part, in the order of its images; raises `ArtifactError` if it is damaged."""
        return _outcomes(self._segment(part))

    def facts(self, part: Part) -> tuple[Amount, tuple[str, ...]]:
        """What a published part says of itself: what was spent on it, and the captioner's layers."""
        facts = _facts(self._segment(part))
        return _amount(facts["usd"]), tuple(facts["layers"])

    def leave(self, part: Part, worker: str, outcomes: Iterable[CaptionOutcome], *, spent: Amount) -> None:
        """Keep what there is of a part for whoever goes on with it, and what this worker spent on it."""
        table = _table(outcomes, {"usd": _usd(spent)})
        urls.write_bytes(urls.join(self.url, "left", f"{part.name}.{worker}"), table)

    def left(self, part: Part) -> list[CaptionOutcome]:
        """What earlier workers had of it."""
        return [outcome for url in self._left(part).values() for outcome in _outcomes(url)]

    def left_spent(self, part: Part, but: str) -> Amount:
        """What earlier workers spent on it, one of them left out."""
        others = (url for worker, url in self._left(part).items() if worker != but)
        return sum((_amount(_facts(url).get("usd", "0")) for url in others), NOTHING)

    def statuses(self, enough: int) -> list[str]:
        """What became of so many images at least, if workers have told of so many."""
        found: list[str] = []
        for folder in (urls.join(self.url, "segments"), urls.join(self.url, "left")):
            for name in urls.ls(folder):
                if len(found) >= enough:
                    return found
                if not name.startswith("."):
                    found += [outcome.status for outcome in _outcomes(urls.join(folder, name))]
        return found

    def spent(self, parts: Iterable[Part]) -> Amount:
        """What was spent on the published parts, and by one process before there were parts."""
        drawn = Draws(self.grants_url).by_worker
        alone = sum((amount for worker, amount in drawn.items() if worker.startswith(self.ALONE)), NOTHING)
        return sum((self.facts(part)[0] for part in parts), alone)

    def _segment(self, part: Part) -> str:
        return urls.join(self.url, "segments", part.name)

    def _left(self, part: Part) -> dict[str, str]:
        """Where earlier workers left what they had of it."""
        folder, start = urls.join(self.url, "left"), f"{part.name}."
        names = [name for name in urls.ls(folder) if name.startswith(start)]
        return {name.removeprefix(start): urls.join(folder, name) for name in names}


def _usd(spent: Amount) -> str | None:
    return None if spent.usd is None else str(spent.usd)


def _amount(usd: str | None) -> Amount:
    return Amount(None if usd is None else Decimal(usd))


def _facts(url: str) -> dict[str, Any]:
    with urls.open_read(url) as stream:
        facts: dict[str, Any] = json.loads(pq.read_metadata(stream).metadata[b"lens"])
    return facts


def _table(outcomes: Iterable[CaptionOutcome], facts: dict[str, Any]) -> bytes:
    columns: dict[str, list[str]] = {name: [] for name in _COLUMNS}
    for item in outcomes:
        provenance, layers = json.dumps(dict(item.provenance)), json.dumps(dict(item.layers))
        values = (item.key, item.status, item.text, item.detail, provenance, layers)
        for name, value in zip(_COLUMNS, values, strict=True):
            columns[name].append(value)
    table = pa.table(columns, schema=_SCHEMA.with_metadata({"lens": json.dumps(facts)}))
    stream = io.BytesIO()
    pq.write_table(table, stream, write_page_checksum=True)
    return stream.getvalue()


def _outcomes(url: str) -> list[CaptionOutcome]:
    try:
        table = pq.read_table(pa.BufferReader(urls.read_bytes(url)), page_checksum_verification=True)
        rows = table.select(_COLUMNS).to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ArtifactError(f"{url} is damaged: {' '.join(str(error).split())}; remove it") from error
    return [
        CaptionOutcome(**{**row, "provenance": json.loads(row["provenance"]), "layers": json.loads(row["layers"])})
        for row in rows
    ]
