"""Drops what cannot be decoded to the last pixel, which reading the header alone does not show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.errors import ImageError

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.decodable.config import DecodableConfig

__all__ = ["Decodable"]


class Decodable:
    """Step 1 of the paper's cleaning: drop corrupt files."""

    def __init__(self, config: DecodableConfig):
        self.config = config

    def check(self, candidate: Candidate) -> str | None:
        """The decoder's reason, or None."""
        try:
            candidate.pixels()
        except ImageError as error:
            return str(error)
        return None
