"""Caption layers in numbers: how many, how long, and what became of the rest."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_caption.quality.text import words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_core.storage.captions import CaptionRow

__all__ = ["layer_statistics"]

_BIN = 10
_LAST_BIN = 600


def layer_statistics(rows: Iterable[CaptionRow]) -> dict[str, dict[str, Any]]:
    """Numbers of each layer: `images`, `captions`, `by_status`, `refusal_rate`, `words` and a histogram of these.

    `words` counts characters in Chinese, Japanese and Thai. `histogram` maps the lower end of each bin of ten words to
    its captions; the last one, 600, has all that are longer.
    """
    statuses: dict[str, Counter[str]] = {}
    counts: dict[str, list[int]] = {}
    for row in rows:
        statuses.setdefault(row.layer, Counter())[row.status] += 1
        if row.status == "ok":
            counts.setdefault(row.layer, []).append(len(words(row.text)))
    return {layer: _numbers(by_status, counts.get(layer, [])) for layer, by_status in statuses.items()}


def _numbers(by_status: Counter[str], counts: list[int]) -> dict[str, Any]:
    images = sum(by_status.values())
    bins = Counter(min(count // _BIN * _BIN, _LAST_BIN) for count in counts)
    spread: dict[str, float] = {}
    if counts:
        values = np.asarray(counts)
        quantiles = np.percentile(values, [5, 50, 95])
        spread = {
            "mean": round(float(values.mean()), 2),
            **{name: float(value) for name, value in zip(("p5", "median", "p95"), quantiles, strict=True)},
            "min": int(values.min()),
            "max": int(values.max()),
        }
    return {
        "images": images,
        "captions": by_status["ok"],
        "by_status": dict(by_status),
        "refusal_rate": round((by_status["refusal"] + by_status["content-filter"]) / images, 6),
        "words": spread,
        "histogram": {str(edge): bins[edge] for edge in sorted(bins)},
    }
