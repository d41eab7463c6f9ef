"""Drops images with too few pixels; reads the header only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.contracts import Verdict

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.min_area.config import MinAreaConfig

__all__ = ["MinArea"]


class MinArea:
    """Step 2 of the paper's cleaning: drop small images."""

    def __init__(self, config: MinAreaConfig):
        self.config = config

    def check(self, candidate: Candidate) -> Verdict:
        """By the header's size."""
        info, least = candidate.info, self.config.pixels
        area = info.width * info.height
        if area >= least:
            return Verdict(score=area)
        reason = f"{info.width}x{info.height} is less than {least:,} pixels"
        return Verdict(reason=reason, score=area, threshold=least)
