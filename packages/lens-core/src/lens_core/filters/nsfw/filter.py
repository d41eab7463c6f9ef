"""Drops images that a classifier finds not safe for work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.contracts import Verdict
from lens_core.filters.vision.scores import LabelScore

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.nsfw.config import NsfwConfig

__all__ = ["Nsfw"]


class Nsfw:
    """Step 3 of the paper's cleaning: drop what is not safe for work."""

    def __init__(self, config: NsfwConfig):
        self.config = config
        self._score = LabelScore(config, config.labels)

    def check(self, candidate: Candidate) -> Verdict:
        """By the labels' probability."""
        score, most = self._score(candidate), self.config.max
        if score <= most:
            return Verdict(score=score)
        return Verdict(
            reason=f"it is not safe for work (probability {score:.3f} > {most:g})", score=score, threshold=most
        )
