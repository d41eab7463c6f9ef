"""Settings of the caption stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_caption.engine.settings import EngineSettings
from lens_core.config.components import CaptionerField
from lens_core.config.stage import StageConfig

__all__ = ["CaptionStageConfig"]


class CaptionStageConfig(StageConfig):
    """Caption every image of a set, as a layer beside the pixels."""

    type: Literal["caption"] = "caption"
    source: str = Field(description="The stage whose images are captioned.")
    captioner: CaptionerField = Field(description="Who writes the captions.")
    layer: str | None = Field(None, min_length=1, description="Name of the caption layer; null takes the stage's name.")
    batch_size: int = Field(32, gt=0, le=4096, description="Images handed to a captioner that asks no server.")
    # No caption depends on it. It is kept out of the stage's key, so that a run goes on when it changes.
    engine: EngineSettings = Field(EngineSettings(), exclude=True, description="How captions are bought.")
