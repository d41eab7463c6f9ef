"""Numbers about caption layers in one pass over their rows, in memory that does not grow with them.

What is kept: counts, eight bytes per caption to find repeated ones, ten bytes per image to know its shard, and the
few rows that the page shows.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_caption.layers import caption_batches, index_batches
from lens_caption.quality.config import GatesConfig, LanguageGate, LoopsGate
from lens_caption.quality.gates import failures, loops
from lens_caption.report.costs import count, dollars
from lens_caption.report.samples import Best, Sample, draw, repeated_share
from lens_core import __version__
from lens_core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lens_core.storage.artifacts import Artifact

__all__ = ["GATES", "LayerFacts", "ShardIndex", "gather", "summary_of"]

GATES = GatesConfig(language=LanguageGate(action="skip"))
"""What captions on the page are put through; a report does not know which language was asked for."""

_GATE_SAMPLE = 500
_OPENING_WORDS = 3
_MAX_OPENINGS = 20_000
_SHOWN = 10


class ShardIndex:
    """Which shard an image lies in, by the first eight bytes of its key."""

    def __init__(self, images: Artifact):
        self.names: list[str] = []
        prefixes, shards = array("Q"), array("I")
        numbers: dict[str, int] = {}
        for batch in index_batches(images, ("key", "shard")):
            prefixes.extend(_prefix(key, images) for key in batch["key"])
            for name in batch["shard"]:
                if name not in numbers:
                    numbers[name] = len(numbers)
                shards.append(numbers[name])
        self.names = list(numbers)
        order = np.argsort(np.frombuffer(prefixes, np.uint64), kind="stable") if prefixes else np.zeros(0, np.int64)
        self._prefixes = np.frombuffer(prefixes, np.uint64)[order] if prefixes else np.zeros(0, np.uint64)
        self._shards = np.frombuffer(shards, np.uint32)[order] if prefixes else np.zeros(0, np.uint32)

    def __len__(self) -> int:
        return len(self._prefixes)

    def of(self, key: str) -> str:
        """Name of the shard; "" for an image that is in none."""
        try:
            prefix = np.uint64(int(key[:16], 16))
        except ValueError:
            return ""
        place = int(np.searchsorted(self._prefixes, prefix))
        known = place < len(self._prefixes) and self._prefixes[place] == prefix
        return self.names[self._shards[place]] if known else ""


@dataclass
class Tally:
    """Counts of a shard or a layer. Tokens and dollars are of the rows that say so."""

    rows: int = 0
    ok: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Decimal = Decimal(0)
    unpriced: int = 0

    def add(self, status: str, tokens: tuple[int, int], cost: Decimal | None) -> None:
        """Count a row."""
        self.rows += 1
        self.ok += status == "ok"
        self.input_tokens += tokens[0]
        self.output_tokens += tokens[1]
        if cost is None:
            self.unpriced += 1
        else:
            self.cost += cost

    def plain(self) -> dict[str, Any]:
        """For JSON; dollars as text, so that no digit is lost."""
        return {
            "images": self.rows,
            "ok": self.ok,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": f"{self.cost:f}",
            "without_known_price": self.unpriced,
        }


@dataclass
class LayerFacts:
    """What one pass gathers of a layer."""

    name: str
    samples: int
    total: Tally = field(default_factory=Tally)
    shards: dict[str, Tally] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    looping: int = 0
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    best: dict[str, Best] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = ("random", "worst", "shortest", "longest", "failed")
        self.best = {kind: Best(self.samples) for kind in kinds} | {"gates": Best(_GATE_SAMPLE)}

    def add(self, row: dict[str, Any], shard: str, seed: int) -> None:
        """Count a row and keep it if it is one to show."""
        provenance = json.loads(row["provenance"])
        tokens = (count(provenance, "input_tokens"), count(provenance, "output_tokens"))
        cost, status, lot = dollars(provenance), row["status"], draw(row["key"], seed)
        for tally in (self.total, self.shards.setdefault(shard, Tally())):
            tally.add(status, tokens, cost)
        self.statuses[status] += 1
        model = provenance.get("served_model") or provenance.get("asked_model") or provenance.get("captioner")
        _bounded(self.models, str(model or "unknown"))
        if status == "ok":
            self._add_caption(row, lot)
        else:
            _bounded(self.details, f"{status}: {row['detail']}"[:200])
            self._offer("failed", lot, lot, row)

    def _add_caption(self, row: dict[str, Any], lot: int) -> None:
        text, length = row["text"], row["words"]
        self.lengths[length] += 1
        _bounded(self.openings, " ".join(text.split(maxsplit=_OPENING_WORDS)[:_OPENING_WORDS])[:80])
        self.hashes.append(_hash(text))
        share = repeated_share(text)
        # The gate is thorough and slow; a loop shows in the share of repeated phrases, or as one endless word.
        reason = loops(text, LoopsGate()) if share > 0.05 or _endless(text) else None
        self.looping += reason is not None
        if reason or share > 0:
            self._offer("worst", share + (reason is not None), lot, row, reason or f"{share:.0%} of its phrases repeat")
        self._offer("random", lot, lot, row)
        self._offer("gates", lot, lot, row)
        note = f"{length:,} word{'s' if length != 1 else ''}"
        self._offer("shortest", -length, lot, row, note)
        self._offer("longest", length, lot, row, note)

    def _offer(self, kind: str, score: float, lot: int, row: dict[str, Any], note: str = "") -> None:
        best = self.best[kind]
        if best.wants(score, lot):
            best.add(score, lot, Sample.of(row, note))


def gather(
    captions: Iterable[Artifact],
    shards: ShardIndex,
    *,
    samples: int,
    seed: int,
    seen: Callable[[int], None] = lambda _: None,
) -> dict[str, LayerFacts]:
    """One pass over the tables.

    Args:
        captions: the artefacts.
        shards: of the images.
        samples: rows kept of each kind.
        seed: of the random ones.
        seen: is told now and then how many rows have passed.

    Returns:
        the facts by layer, in the order in which the layers are met.

    Raises:
        ArtifactError: a table is missing or damaged.
    """
    layers: dict[str, LayerFacts] = {}
    passed = 0
    for artifact in captions:
        for batch in caption_batches(artifact):
            for values in zip(*batch.values(), strict=True):
                row = dict(zip(batch, values, strict=True))
                facts = layers.setdefault(row["layer"], LayerFacts(row["layer"], samples))
                try:
                    facts.add(row, shards.of(row["key"]), seed)
                except (ValueError, AttributeError) as error:
                    raise ArtifactError(
                        f"{artifact.url}: the provenance of image {row['key']} is not a JSON object ({error})"
                    ) from error
            passed += len(batch["key"])
            seen(passed)
    return layers


def summary_of(layers: dict[str, LayerFacts], captions: Iterable[Artifact], images: int) -> dict[str, Any]:
    """The numbers for machines; the second look at the tables fetches the texts of repeated captions."""
    captions = list(captions)
    return {
        "format_version": 1,
        "lens": __version__,
        "images": images,
        "layers": {name: _layer(facts, captions) for name, facts in layers.items()},
    }


def _layer(facts: LayerFacts, captions: list[Artifact]) -> dict[str, Any]:
    looked_at = facts.best["gates"].ranked()
    gates: Counter[str] = Counter()
    for sample in looked_at:
        gates.update({gate for gate, _ in failures(sample.text, GATES)})
    return {
        **facts.total.plain(),
        "statuses": dict(facts.statuses.most_common()),
        "reasons": dict(facts.details.most_common(_SHOWN)),
        "models": dict(facts.models.most_common(_SHOWN)),
        "words": _lengths(facts.lengths),
        "loops": facts.looping,
        "repeated": _repeated(facts, captions),
        "openings": {words: number for words, number in facts.openings.most_common(_SHOWN) if number > 1},
        "gates": {"of": len(looked_at), "failing": dict(gates.most_common())},
        "shards": {name or "(no image)": tally.plain() for name, tally in sorted(facts.shards.items())},
    }


def _lengths(lengths: Counter[int]) -> dict[str, Any]:
    """Mean and percentiles, exact, and the counts themselves in bins of a round width."""
    total = lengths.total()
    if not total:
        return {"captions": 0}
    values = sorted(lengths)
    upto = np.cumsum([lengths[value] for value in values])
    percentiles = {
        f"p{percent}": values[int(np.searchsorted(upto, percent / 100 * total, side="left"))]
        for percent in (1, 5, 25, 50, 75, 95, 99)
    }
    # A single caption of a million words must not squeeze all others into one bin.
    top = max(percentiles["p99"] * 1.25, 10)
    width = next(width for width in _round_widths() if top / width <= 40)
    bins: Counter[int] = Counter()
    for value, number in lengths.items():
        bins[min(int(value // width), int(top // width))] += number
    return {
        "captions": total,
        "mean": round(sum(value * number for value, number in lengths.items()) / total, 2),
        "min": values[0],
        **percentiles,
        "max": values[-1],
        "bin_width": width,
        "last_bin_is_open": values[-1] >= (int(top // width) + 1) * width,
        "bins": [bins[number] for number in range(max(bins) + 1)],
    }


def _round_widths() -> Iterable[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def _repeated(facts: LayerFacts, captions: list[Artifact]) -> dict[str, Any]:
    """Captions that several images share, word by word: how many, and the commonest."""
    if not facts.hashes:
        return {"images": 0, "captions": {}}
    values, counts = np.unique(np.frombuffer(facts.hashes, np.uint64), return_counts=True)
    many = counts > 1
    order = np.argsort(-counts[many], kind="stable")[:_SHOWN]
    wanted = dict(zip(values[many][order].tolist(), counts[many][order].tolist(), strict=True))
    texts: dict[int, str] = {}
    for artifact in captions if wanted else ():
        for batch in caption_batches(artifact, ("layer", "text", "status")):
            for layer, text, status in zip(*batch.values(), strict=True):
                if layer == facts.name and status == "ok" and len(texts) < len(wanted):
                    digest = _hash(text)
                    if digest in wanted:
                        texts.setdefault(digest, text[:300])
    return {
        "images": int(counts[many].sum()),
        "captions": {texts[digest]: number for digest, number in wanted.items() if digest in texts},
    }


def _bounded(counter: Counter[str], value: str) -> None:
    """Count a value; if there are too many different ones, those seen once are forgotten."""
    counter[value] += 1
    if len(counter) > _MAX_OPENINGS:
        for rare in [name for name, number in counter.items() if number == 1]:
            del counter[rare]


def _hash(text: str) -> int:
    plain = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "big")


def _endless(text: str) -> bool:
    return len(text) > 40 and max(map(len, text.split()), default=0) > 40


def _prefix(key: str, images: Artifact) -> int:
    try:
        return int(key[:16], 16)
    except ValueError as error:
        raise ArtifactError(f"{images.url}: the index holds {key[:40]!r}, which is no image key") from error
