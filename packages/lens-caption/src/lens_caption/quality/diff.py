"""What changed between two captions of the same images: two models, two prompts, or before and after a check.

diff = diff_layers(rows_a, rows_b)
diff.to_json()    # images, lengths, refusals, tokens, how much the texts have in common
"""

from __future__ import annotations

import difflib
import math
import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lens_caption.quality.text import normal, resemblance, sentences, words
from lens_caption.quality.wilson import Z_95

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_core.storage.captions import CaptionRow

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
        a: rows of one layer, one for each image.
        b: rows of the other.
        samples: how many images are kept to be looked at.
        seed: of those at random.
    """
    rows_a, rows_b = {row.key: row for row in a}, {row.key: row for row in b}
    both = [key for key in rows_a if key in rows_b]
    statuses = Counter(f"{rows_a[key].status} → {rows_b[key].status}" for key in both)
    pairs = []
    changes: list[int] = []
    same = kept = removed = added = 0
    for key in both:
        one, other = rows_a[key], rows_b[key]
        if one.status != "ok" or other.status != "ok":
            continue
        equal = normal(one.text) == normal(other.text)
        pairs.append(Pair(key=key, a=one, b=other, common=1.0 if equal else resemblance(one.text, other.text)))
        changes.append(len(words(other.text)) - len(words(one.text)))
        same += equal
        before, after = (Counter(map(normal, sentences(row.text))) for row in (one, other))
        kept += (before & after).total()
        removed += (before - after).total()
        added += (after - before).total()
    lost = [
        Pair(key=key, a=rows_a[key], b=rows_b[key], common=0.0)
        for key in both
        if (rows_a[key].status == "ok") != (rows_b[key].status == "ok")
    ]
    return Diff(
        a=_side(rows_a.values()),
        b=_side(rows_b.values()),
        both=len(both),
        statuses=dict(statuses.most_common()),
        pairs=len(pairs),
        same=same,
        words_change=_mean_with_interval(changes),
        common=round(sum(pair.common for pair in pairs) / len(pairs), 4) if pairs else 0.0,
        sentences_kept=kept,
        sentences_removed=removed,
        sentences_added=added,
        samples=_samples(lost, pairs, samples, seed),
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


def _samples(lost: list[Pair], pairs: list[Pair], count: int, seed: int) -> tuple[Pair, ...]:
    """Images that lost or gained a caption, then the most different pairs, then some at random."""
    rng = random.Random(f"samples {seed}")
    first = rng.sample(lost, min(len(lost), count // 4))
    changed = sorted((pair for pair in pairs if pair.common < 1), key=lambda pair: (pair.common, pair.key))
    worst = changed[: max(0, (count - len(first)) // 2)]
    rest = changed[len(worst) :]
    return (*first, *worst, *rng.sample(rest, min(len(rest), max(0, count - len(first) - len(worst)))))


def _side(rows: Iterable[CaptionRow]) -> Side:
    listed = list(rows)
    counts = sorted(len(words(row.text)) for row in listed if row.status == "ok")
    facts: dict[str, Counter[str]] = {}
    tokens = Counter[str]()
    for row in listed:
        for name in _FACTS:
            if name in row.provenance:
                facts.setdefault(name, Counter())[str(row.provenance[name])] += 1
        for name in ("input_tokens", "output_tokens"):
            tokens[name] += int(row.provenance.get(name, 0))
    middle = len(counts) // 2
    return Side(
        images=len(listed),
        captions=len(counts),
        by_status=dict(Counter(row.status for row in listed).most_common()),
        words_mean=round(sum(counts) / len(counts), 2) if counts else 0.0,
        words_median=float((counts[middle] + counts[~middle]) / 2) if counts else 0.0,
        input_tokens=tokens["input_tokens"],
        output_tokens=tokens["output_tokens"],
        facts={name: dict(counter.most_common(5)) for name, counter in facts.items()},
    )


def _mean_with_interval(values: list[int]) -> tuple[float, float, float]:
    if not values:
        return 0.0, 0.0, 0.0
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    half = Z_95 * math.sqrt(variance / len(values))
    return round(mean, 3), round(mean - half, 3), round(mean + half, 3)
