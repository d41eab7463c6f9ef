"""Drops images with too few pixels; reads the header only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.min_area.config import MinAreaConfig

__all__ = ["MinArea"]


class MinArea:
    """Step 2 of the paper's cleaning: drop small images."""

    def __init__(self, config: MinAreaConfig):
        self.config = config

    def check(self, candidate: Candidate) -> str | None:
        """The size, if it is too small."""
        info = candidate.info
        if info.width * info.height >= self.config.pixels:
            return None
        return f"{info.width}x{info.height} is less than {self.config.pixels:,} pixels"
