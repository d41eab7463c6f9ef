"""Settings of the caption-review stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.stage import StageConfig

__all__ = ["CaptionReviewStageConfig"]


class CaptionReviewStageConfig(StageConfig):
    """Make a caption layer of what people decided with `lens caption review`."""

    type: Literal["caption-review"] = "caption-review"
    source: str = Field(description="The caption stage that was reviewed.")
    decisions: str = Field(description="The file of decisions, on this machine; the stage runs again when it changes.")
    reviewed: str | None = Field(None, min_length=1, description="The layer that was reviewed; null is the only one.")
    layer: str | None = Field(None, min_length=1, description="Name of the new layer; null takes the stage's name.")
    undecided: Literal["keep", "drop"] = Field(
        "keep", description="What becomes of captions that nobody decided about: in the layer as they are, or left out."
    )
