"""Drops images on which a classifier sees a watermark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.contracts import Verdict
from lens_core.filters.vision.scores import LabelScore

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.watermark.config import WatermarkConfig

__all__ = ["Watermark"]


class Watermark:
    """Step 5 of the paper's cleaning: drop images with a watermark."""

    def __init__(self, config: WatermarkConfig):
        self.config = config
        self._score = LabelScore(config, config.labels)

    def check(self, candidate: Candidate) -> Verdict:
        """By the labels' probability."""
        score, most = self._score(candidate), self.config.max
        if score <= most:
            return Verdict(score=score)
        return Verdict(reason=f"it has a watermark (probability {score:.3f} > {most:g})", score=score, threshold=most)
