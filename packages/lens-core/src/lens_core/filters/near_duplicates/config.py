"""Settings of the filter of near-duplicates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["NearDuplicatesConfig"]


class NearDuplicatesConfig(ComponentConfig):
    """Drops images that look like an earlier one: compressed again, scaled, or slightly trimmed."""

    type: Literal["near-duplicates"] = "near-duplicates"
    bits: int = Field(
        11, ge=0, le=11, description="Candidates: perceptual hashes that differ in at most this many of 64 bits."
    )
    max: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Confirmation: largest difference of the thumbnails, in units of their contrast, that counts as "
        "the same picture.",
    )
