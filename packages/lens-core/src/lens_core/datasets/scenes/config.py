"""Settings of the procedural scenes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["ScenesConfig"]


class ScenesConfig(ComponentConfig):
    """One to three coloured shapes on a plain background, with the exact scene graph of each image."""

    type: Literal["scenes"] = "scenes"
    count: int = Field(gt=0, le=100_000_000, description="How many images.")
    size: int = Field(32, ge=32, le=256, multiple_of=16, description="Height and width in pixels.")
    split: Literal["train", "held-out", "all"] = Field(
        "train", description="Which compositions: those for training, those kept for evaluation, or both."
    )
