"""What changed between two captions of the same images: two models, two prompts, or before and after a check.

diff = diff_layers(rows_a, rows_b)
diff.to_json()    # images, lengths, refusals, tokens, how much the texts have in common

The rows of the first layer wait in a scratch database for their partners; in memory are counts, and the samples.
"""

from __future__ import annotations

import difflib
import hashlib
import heapq
import json
import math
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lens_caption.quality.statistics import mean_of, percentile_of
from lens_caption.quality.text import normal, resemblance, sentences, words
from lens_core.intervals import Z_95
from lens_core.storage.captions import CaptionRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Diff", "Pair", "Side", "diff_layers", "word_changes"]

_FACTS = ("captioner", "asked_model", "served_model", "prompt", "prompt_sha256", "service_tier", "recipe")
_MAX_DIFFED_WORDS = 1500

Mark = Literal["same", "removed", "added"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two layers. `facts` are what its rows say of their making, each with how many rows say so."""

    images: int
    captions: int
    by_status: dict[str, int]
    words_mean: float
    words_median: float
    input_tokens: int
    output_tokens: int
    facts: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image with both of its rows; `common` is how much the two texts share, 0 to 1."""

    key: str
    a: CaptionRow
    b: CaptionRow
    common: float


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Two layers compared; numbers of pairs are over images that have a caption in both.

    Args:
        a, b: each on its own.
        both: images with a row in both.
        statuses: images by their status in a and in b, as "ok → refusal".
        pairs: images with a caption in both.
        same: pairs whose captions are equal but for case, punctuation and spaces.
        words_change: mean of words in b minus words in a, and its 95 % interval.
        common: mean of how much the captions of a pair share.
        sentences_kept, sentences_removed, sentences_added: from a to b, over all pairs.
        samples: some images: captions lost or gained, the most different ones, and other changed ones at random.
    """

    a: Side
    b: Side
    both: int
    statuses: dict[str, int]
    pairs: int
    same: int
    words_change: tuple[float, float, float]
    common: float
    sentences_kept: int
    sentences_removed: int
    sentences_added: int
    samples: tuple[Pair, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the samples, which hold the captions."""
        return {key: value for key, value in asdict(self).items() if key != "samples"}


def diff_layers(a: Iterable[CaptionRow], b: Iterable[CaptionRow], *, samples: int = 20, seed: int = 0) -> Diff:
    """Compare two layers.

    Args:
        a: rows of one layer, one for each image; they are read once.
        b: rows of the other, likewise.
        samples: how many images are kept to be looked at.
        seed: of those at random.
    """
    side_a, side_b = _SideTally(), _SideTally()
    statuses, changes = Counter[str](), Counter[int]()
    kept = removed = added = same = 0
    common = 0.0
    picks = _Picks(samples, seed)
    for one, other in _joined(a, b, side_a, side_b):
        statuses[f"{one.status} → {other.status}"] += 1
        if one.status != "ok" or other.status != "ok":
            if (one.status == "ok") != (other.status == "ok"):
                picks.offer_lost(Pair(key=one.key, a=one, b=other, common=0.0))
            continue
        equal = normal(one.text) == normal(other.text)
        pair = Pair(key=one.key, a=one, b=other, common=1.0 if equal else resemblance(one.text, other.text))
        picks.offer(pair)
        common += pair.common
        changes[len(words(other.text)) - len(words(one.text))] += 1
        same += equal
        before, after = (Counter(map(normal, sentences(row.text))) for row in (one, other))
        kept += (before & after).total()
        removed += (before - after).total()
        added += (after - before).total()
    pairs = changes.total()
    return Diff(
        a=side_a.side(),
        b=side_b.side(),
        both=statuses.total(),
        statuses=dict(statuses.most_common()),
        pairs=pairs,
        same=same,
        words_change=_mean_with_interval(changes),
        common=round(common / pairs, 4) if pairs else 0.0,
        sentences_kept=kept,
        sentences_removed=removed,
        sentences_added=added,
        samples=picks.picked(),
    )


def word_changes(a: str, b: str) -> list[tuple[Mark, str]]:
    """The words of both texts in one row, each run marked as the same, removed from a, or added in b."""
    before, after = a.split(), b.split()
    if len(before) > _MAX_DIFFED_WORDS or len(after) > _MAX_DIFFED_WORDS:
        return [("removed", " ".join(before)), ("added", " ".join(after))]
    found: list[tuple[Mark, str]] = []
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            found.append(("same", " ".join(before[a0:a1])))
            continue
        if a1 > a0:
            found.append(("removed", " ".join(before[a0:a1])))
        if b1 > b0:
            found.append(("added", " ".join(after[b0:b1])))
    return found


def _joined(
    a: Iterable[CaptionRow], b: Iterable[CaptionRow], side_a: _SideTally, side_b: _SideTally
) -> Iterator[tuple[CaptionRow, CaptionRow]]:
    """Rows of both layers by image, in the order of the second; every row is counted on its side."""
    with (
        tempfile.TemporaryDirectory(prefix="lens-diff-") as folder,
        closing(sqlite3.connect(f"{folder}/a")) as database,
    ):
        database.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; CREATE TABLE a (key TEXT PRIMARY KEY, row TEXT NOT NULL)"
        )
        for row in a:
            side_a.add(row)
            database.execute("INSERT OR REPLACE INTO a VALUES (?, ?)", (row.key, json.dumps(asdict(row))))
        for other in b:
            side_b.add(other)
            found = database.execute("SELECT row FROM a WHERE key = ?", (other.key,)).fetchone()
            if found:
                yield CaptionRow(**json.loads(found[0])), other


class _Picks:
    """Images that lost or gained a caption, then the most different pairs, then some at random: never more in memory.

    Chance, and which of equals come first, go by a hash of the image key: the order of the rows does not matter.
    """

    def __init__(self, count: int, seed: int):
        self._count, self._seed = count, seed
        self._lost: list[_Pick] = []
        self._worst: list[_Pick] = []
        self._any: list[_Pick] = []

    def offer_lost(self, pair: Pair) -> None:
        """An image that has a caption on one side only."""
        self._keep(self._lost, 0.0, pair, self._count // 4)

    def offer(self, pair: Pair) -> None:
        """An image that has two."""
        if pair.common < 1:
            self._keep(self._worst, pair.common, pair, self._count)
            self._keep(self._any, 0.0, pair, 2 * self._count)  # some of them are among the worst as well

    def picked(self) -> tuple[Pair, ...]:
        """All of them."""
        lost, worst, others = (
            [pick[2] for pick in sorted(picks, key=lambda pick: pick[:2], reverse=True)]
            for picks in (self._lost, self._worst, self._any)
        )
        worst = worst[: max(0, (self._count - len(lost)) // 2)]
        taken = {pair.key for pair in worst}
        rest = [pair for pair in others if pair.key not in taken]
        return (*lost, *worst, *rest[: self._count - len(lost) - len(worst)])

    def _keep(self, heap: list[_Pick], score: float, pair: Pair, size: int) -> None:
        """Keep the pairs of the least scores."""
        lot = int.from_bytes(hashlib.blake2b(f"{self._seed} {pair.key}".encode(), digest_size=8).digest())
        pick = (-score, lot, pair)
        if len(heap) < size:
            heapq.heappush(heap, pick)
        elif size and pick[:2] > heap[0][:2]:
            heapq.heapreplace(heap, pick)


_Pick = tuple[float, int, Pair]


class _SideTally:
    """Counts of one layer's rows."""

    def __init__(self) -> None:
        self._lengths, self._statuses, self._tokens = Counter[int](), Counter[str](), Counter[str]()
        self._facts: dict[str, Counter[str]] = {}

    def add(self, row: CaptionRow) -> None:
        """Count a row."""
        self._statuses[row.status] += 1
        if row.status == "ok":
            self._lengths[len(words(row.text))] += 1
        for name in _FACTS:
            if name in row.provenance:
                self._facts.setdefault(name, Counter())[str(row.provenance[name])] += 1
        for name in ("input_tokens", "output_tokens"):
            self._tokens[name] += int(row.provenance.get(name, 0))

    def side(self) -> Side:
        """What they add up to."""
        lengths = self._lengths
        return Side(
            images=self._statuses.total(),
            captions=lengths.total(),
            by_status=dict(self._statuses.most_common()),
            words_mean=round(mean_of(lengths), 2) if lengths else 0.0,
            words_median=float(percentile_of(lengths, 50)) if lengths else 0.0,
            input_tokens=self._tokens["input_tokens"],
            output_tokens=self._tokens["output_tokens"],
            facts={name: dict(counter.most_common(5)) for name, counter in self._facts.items()},
        )


def _mean_with_interval(values: Counter[int]) -> tuple[float, float, float]:
    if not values:
        return 0.0, 0.0, 0.0
    number, mean = values.total(), mean_of(values)
    variance = sum(count * (value - mean) ** 2 for value, count in values.items()) / max(1, number - 1)
    half = Z_95 * math.sqrt(variance / number)
    return round(mean, 3), round(mean - half, 3), round(mean + half, 3)
