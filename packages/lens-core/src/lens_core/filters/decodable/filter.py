"""Drops what cannot be decoded to the last pixel, which reading the header alone does not show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.contracts import Verdict
from lens_core.errors import ImageError
from lens_core.images import DECODER, is_animated

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.decodable.config import DecodableConfig

__all__ = ["Decodable"]


class Decodable:
    """Step 1 of the paper's cleaning: drop corrupt files."""

    def __init__(self, config: DecodableConfig):
        self.config = config

    def check(self, candidate: Candidate) -> Verdict:
        """By the decoder, whose reason is the verdict's."""
        reason = candidate.measure(f"decodable {DECODER}", lambda: _fault(candidate))
        if not reason and self.config.animated == "drop" and is_animated(candidate.data):
            reason = "it is animated"
        return Verdict(reason=reason or None)


def _fault(candidate: Candidate) -> str:
    try:
        candidate.pixels()
    except ImageError as error:
        return str(error)
    return ""
