"""Drops images of few grey values: blank pages, plain colours, simple drawings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.contracts import Verdict
from lens_core.filters import statistics
from lens_core.images import DECODER

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.entropy.config import EntropyConfig

__all__ = ["Entropy"]


class Entropy:
    """Step 7 of the paper's cleaning: drop images with little in them."""

    def __init__(self, config: EntropyConfig):
        self.config = config

    def check(self, candidate: Candidate) -> Verdict:
        """By the entropy of the grey histogram."""
        score = candidate.measure(
            f"entropy 1 {DECODER}", lambda: statistics.entropy(statistics.grey(candidate.small()))
        )
        least = self.config.min
        if score >= least:
            return Verdict(score=score)
        return Verdict(reason=f"there is little in it (entropy {score:.2f} < {least:g})", score=score, threshold=least)
