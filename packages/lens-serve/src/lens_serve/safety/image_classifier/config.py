"""Settings of the image classifier."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.filters.vision.config import LabelFilterConfig

__all__ = ["ImageClassifierConfig"]


class ImageClassifierConfig(LabelFilterConfig):
    """Refuses pictures that a classifier finds to be of a kind; you bring the model."""

    type: Literal["image-classifier"] = "image-classifier"
    labels: list[str] = Field(
        ["nsfw"], min_length=1, description="The model's labels that count; their probabilities are added."
    )
    max: float = Field(0.5, ge=0, le=1, description="Largest probability that passes.")
