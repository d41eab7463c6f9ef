"""Which captions a person should look at: some at random, and the extremes. Only those are kept.

Everything goes by a hash of the image key, not by the order of the rows: the same captions give the same samples.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lens_caption.quality.text import words

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Best", "Sample", "draw", "repeated_share"]

_SHOWN_CHARS = 6000


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A caption to show; `note` says why."""

    key: str
    layer: str
    text: str
    status: str
    detail: str
    provenance: Mapping[str, Any]
    note: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any], note: str = "", *, cut: bool = True) -> Sample:
        """From a row of a caption table; a text of megabytes is cut, unless it must be whole."""
        text = str(row["text"])
        return cls(
            key=row["key"],
            layer=row["layer"],
            text=text if not cut or len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…",
            status=row["status"],
            detail=row["detail"],
            provenance=json.loads(row["provenance"]),
            note=note,
        )


class Best:
    """The rows of the highest scores; ties are broken by `lot`."""

    def __init__(self, size: int):
        self._size = size
        self._heap: list[tuple[float, int, str, Sample]] = []

    def wants(self, score: float, lot: int) -> bool:
        """Whether a row of that score would be kept, before a sample is made of it."""
        return len(self._heap) < self._size or (self._size > 0 and (score, lot) > self._heap[0][:2])

    def add(self, score: float, lot: int, sample: Sample) -> None:
        """Keep a row that is wanted."""
        entry = (score, lot, sample.key, sample)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def ranked(self) -> list[Sample]:
        """The highest score first."""
        return [sample for *_, sample in sorted(self._heap, key=lambda entry: entry[:3], reverse=True)]


def draw(key: str, seed: int) -> int:
    """A row's lot: 64 bits that depend on image and seed alone."""
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def repeated_share(text: str) -> float:
    """Share of the four-word phrases of a caption that occurred in it before: 0 for prose, near 1 for a loop."""
    tokens = words(text)
    grams = len(tokens) - 3
    if grams < 2:
        return 0.0
    return 1 - len(set(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))) / grams
