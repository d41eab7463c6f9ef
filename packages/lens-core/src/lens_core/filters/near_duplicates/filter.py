"""Drops images that look like an earlier one, by perceptual hash and thumbnail; no model, no library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.contracts import Verdict
from lens_core.filters.near_duplicates.index import NearIndex, mark
from lens_core.images import DECODER

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.near_duplicates.config import NearDuplicatesConfig

__all__ = ["NearDuplicates"]


class NearDuplicates:
    """The cheap half of step 9 of the paper's cleaning: of images that look alike, the first one stays."""

    def __init__(self, config: NearDuplicatesConfig):
        self.config = config
        self._index = NearIndex(config.bits)

    def check(self, candidate: Candidate) -> Verdict:
        """By the most similar image that was kept; an image unlike all others has no score."""
        found = self._index.nearest(self._mark(candidate))
        if found is None:
            return Verdict()
        name, difference = found
        most = self.config.max
        if difference > most:
            return Verdict(score=difference)
        return Verdict(
            reason=f"it looks like {name} (difference {difference:.3f} <= {most:g})", score=difference, threshold=most
        )

    def kept(self, candidate: Candidate) -> None:
        """From now on others must not look like this one."""
        self._index.add(self._mark(candidate), candidate.name)

    def _mark(self, candidate: Candidate) -> bytes:
        return candidate.measure(f"near-duplicate 1 {DECODER}", lambda: mark(candidate.small()))
