"""Drops images that a model finds ugly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.contracts import Verdict
from lens_core.filters.vision.scores import LabelScore

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.aesthetics.config import AestheticsConfig

__all__ = ["Aesthetics"]


class Aesthetics:
    """Step 4 of the paper's cleaning: drop images of a low aesthetic score."""

    def __init__(self, config: AestheticsConfig):
        self.config = config
        self._score = LabelScore(config, [config.label] if config.label else [])

    def check(self, candidate: Candidate) -> Verdict:
        """By the model's score."""
        score, least = self._score(candidate), self.config.min
        if score >= least:
            return Verdict(score=score)
        return Verdict(reason=f"it is not beautiful (score {score:.2f} < {least:g})", score=score, threshold=least)
