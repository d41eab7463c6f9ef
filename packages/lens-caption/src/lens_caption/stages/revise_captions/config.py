"""Settings of the stage that has captions corrected."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lens_caption.captioners.openai.config import OpenAIConfig
from lens_caption.engine.settings import EngineSettings
from lens_core.config.stage import StageConfig

__all__ = ["ReviseCaptionsConfig", "ReviserConfig"]


class ReviserConfig(OpenAIConfig):
    """A vision model behind an OpenAI-style endpoint that is shown an image and its caption."""

    prompt: str = Field(
        "revise-1", min_length=1, description="The recipe; it takes the input `caption`, and gives the corrected one."
    )

    @model_validator(mode="after")
    def _asks_by_a_recipe(self) -> ReviserConfig:
        if self.instruction:
            raise ValueError("a reviser asks by a recipe with the input 'caption'; put your words into one of your own")
        return self


class ReviseCaptionsConfig(StageConfig):
    """Have a caption layer compared with its images and corrected, in one call for each; as a layer of its own."""

    type: Literal["revise-captions"] = "revise-captions"
    source: str = Field(description="The stage whose captions are corrected; they stay as they are.")
    revises: str | None = Field(None, min_length=1, description="The layer that is corrected; null is the only one.")
    captioner: ReviserConfig = Field(description="Who corrects; best another model than the one that wrote.")
    layer: str | None = Field(None, min_length=1, description="Name of the new layer; null takes the stage's name.")
    # No caption depends on it. It is kept out of the stage's key, so that a run goes on when it changes.
    engine: EngineSettings = Field(EngineSettings(), exclude=True, description="How corrections are bought.")
