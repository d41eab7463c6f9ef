"""Drops images without sharp edges. The copy has a fixed size, because enlarging an image blurs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.contracts import Verdict
from lens_core.filters import statistics
from lens_core.images import DECODER

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.clarity.config import ClarityConfig

__all__ = ["Clarity"]


class Clarity:
    """Step 6 of the paper's cleaning: drop blurred images."""

    def __init__(self, config: ClarityConfig):
        self.config = config

    def check(self, candidate: Candidate) -> Verdict:
        """By the variance of the Laplacian."""
        score = candidate.measure(
            f"clarity 1 {DECODER}", lambda: statistics.clarity(statistics.grey(candidate.small()))
        )
        least = self.config.min
        if score >= least:
            return Verdict(score=score)
        return Verdict(reason=f"it is blurred (clarity {score:.1f} < {least:g})", score=score, threshold=least)
