"""Drops images that are too dark or too bright."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.contracts import Verdict
from lens_core.filters import statistics
from lens_core.images import DECODER

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.luminance.config import LuminanceConfig

__all__ = ["Luminance"]


class Luminance:
    """Step 8 of the paper's cleaning: drop under- and overexposed images."""

    def __init__(self, config: LuminanceConfig):
        self.config = config

    def check(self, candidate: Candidate) -> Verdict:
        """By the mean V."""
        score = candidate.measure(f"luminance 1 {DECODER}", lambda: statistics.luminance(candidate.small()))
        least, most = self.config.min, self.config.max
        if score < least:
            return Verdict(reason=f"it is too dark (V {score:.3f} < {least:g})", score=score, threshold=least)
        if score > most:
            return Verdict(reason=f"it is too bright (V {score:.3f} > {most:g})", score=score, threshold=most)
        return Verdict(score=score)
