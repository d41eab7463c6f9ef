"""Caption layers in numbers: how many, how long, and what became of the rest."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lens_caption.quality.text import words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_core.storage.captions import CaptionRow

__all__ = ["LayerStatistics", "mean_of", "percentile_of"]

_BIN = 10
_LAST_BIN = 600


class LayerStatistics:
    """Counts of rows that pass by."""

    def __init__(self, rows: Iterable[CaptionRow] = ()):
        self._statuses: dict[str, Counter[str]] = {}
        self._lengths: dict[str, Counter[int]] = {}
        for row in rows:
            self.add(row)

    def add(self, row: CaptionRow) -> None:
        """Count a row."""
        self._statuses.setdefault(row.layer, Counter())[row.status] += 1
        if row.status == "ok":
            self._lengths.setdefault(row.layer, Counter())[len(words(row.text))] += 1

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Numbers of each layer: `images`, `captions`, `by_status`, `refusal_rate`, `words` and a histogram of these.

        `words` counts characters in Chinese, Japanese and Thai. `histogram` maps the lower end of each bin of ten words
        to its captions; the last one, 600, has all that are longer.
        """
        return {layer: _numbers(found, self._lengths.get(layer, Counter())) for layer, found in self._statuses.items()}


def mean_of(counts: Counter[int]) -> float:
    """The mean of values that are given with how often each occurs."""
    return sum(value * number for value, number in counts.items()) / counts.total()


def percentile_of(counts: Counter[int], percent: float) -> float:
    """A percentile of such values; between two of them it is interpolated."""
    values = sorted(counts)
    upto = list(accumulate(counts[value] for value in values))
    place = percent / 100 * (upto[-1] - 1)

    def at(number: int) -> int:
        return next(value for value, last in zip(values, upto, strict=True) if number < last)

    low = at(int(place))
    return low + (place - int(place)) * (at(min(int(place) + 1, upto[-1] - 1)) - low)


def _numbers(by_status: Counter[str], lengths: Counter[int]) -> dict[str, Any]:
    images = by_status.total()
    bins: Counter[int] = Counter()
    for length, number in lengths.items():
        bins[min(length // _BIN * _BIN, _LAST_BIN)] += number
    spread: dict[str, float] = {}
    if lengths:
        spread = {
            "mean": round(mean_of(lengths), 2),
            **{name: percentile_of(lengths, at) for name, at in (("p5", 5), ("median", 50), ("p95", 95))},
            "min": min(lengths),
            "max": max(lengths),
        }
    return {
        "images": images,
        "captions": by_status["ok"],
        "by_status": dict(by_status),
        "refusal_rate": round((by_status["refusal"] + by_status["content-filter"]) / images, 6),
        "words": spread,
        "histogram": {str(edge): bins[edge] for edge in sorted(bins)},
    }
