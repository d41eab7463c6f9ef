"""Settings of the NSFW filter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.filters.vision.config import LabelFilterConfig

__all__ = ["NsfwConfig"]


class NsfwConfig(LabelFilterConfig):
    """Drops images that a classifier finds not safe for work; you bring the model."""

    type: Literal["nsfw"] = "nsfw"
    labels: list[str] = Field(
        ["nsfw"], min_length=1, description="The model's labels that count; their probabilities are added."
    )
    max: float = Field(
        0.5, ge=0, le=1, description="Largest probability that is kept; the paper does not give its own."
    )
