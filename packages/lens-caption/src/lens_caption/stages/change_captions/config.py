"""Settings of the stage that changes captions by rule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lens_caption.arms.config import Change
from lens_caption.arms.vocabulary import VocabularyName
from lens_core.config.stage import StageConfig

__all__ = ["ChangeCaptionsConfig"]

_Odds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ChangeCaptionsConfig(StageConfig):
    """Make a caption layer of earlier ones by rule: shorter, shuffled, mixed, with less said, or with errors."""

    type: Literal["change-captions"] = "change-captions"
    source: str | list[str] = Field(description="The stage whose captions are read, or several; they stay as they are.")
    layers: list[str] | None = Field(None, min_length=1, description="The layers that are read; null means all.")
    odds: list[_Odds] | None = Field(
        None,
        min_length=2,
        description="Draw one of the layers for each image by lot, each as often as its number here says, such as "
        "[1, 1]; null passes all layers on, and a trainer then draws one of them each time.",
    )
    changes: list[Change] = Field([], description="What is done to each caption, one after the other.")
    swapped: float = Field(
        0, ge=0, le=1, description="Share of the images that then get the finished caption of another one."
    )
    vocabulary: VocabularyName = Field(
        "english", description="Words by which attributes are found and exchanged: prose, or the procedural scenes."
    )
    seed: int = Field(0, ge=0, description="Of all lots; with the same seed, more errors are the same ones and others.")
    layer: str | None = Field(None, min_length=1, description="Name of the new layer; null takes the stage's name.")

    @model_validator(mode="after")
    def _odds_fit(self) -> ChangeCaptionsConfig:
        if self.odds is not None:
            if self.layers is not None and len(self.odds) != len(self.layers):
                raise ValueError(f"odds: {len(self.odds)} numbers for {len(self.layers)} layers")
            if not sum(self.odds):
                raise ValueError("odds: all are 0, so that no layer can be drawn")
        return self
