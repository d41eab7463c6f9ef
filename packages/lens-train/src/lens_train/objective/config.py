"""Settings of the objective."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lens_core.config.base import Config
from lens_core.config.prediction import PredictionConfig

__all__ = ["LogitNormalTimes", "ModeTimes", "ObjectiveConfig", "RepaConfig", "TimesConfig", "UniformTimes"]


class _Times(Config):
    shift: Literal["none", "trained"] | Annotated[float, Field(ge=-6, le=6)] = Field(
        "none",
        description="How far the times lean to the noisy end: 'trained' by the paper's rule, which grows with the "
        "image (1.0 at 256 tokens, 1.3 at 4096); a number by e^that, as samplers do.",
    )


class UniformTimes(_Times):
    """Every time alike."""

    type: Literal["uniform"] = "uniform"


class LogitNormalTimes(_Times):
    """The logit of the time is normal: the middle is seen most (arXiv 2403.03206, section 3.1)."""

    type: Literal["logit-normal"] = "logit-normal"
    mean: float = Field(0.0, description="Of the logit; larger means noisier.")
    std: float = Field(1.0, gt=0, description="Of the logit.")


class ModeTimes(_Times):
    """Heavier in the middle, yet never rare at the ends (arXiv 2403.03206, section 3.1)."""

    type: Literal["mode"] = "mode"
    scale: float = Field(
        1.29, ge=-1, le=1.75, description="How heavy the middle is: 0 is uniform, below 0 favours the ends."
    )


TimesConfig = Annotated[UniformTimes | LogitNormalTimes | ModeTimes, Field(discriminator="type")]


class RepaConfig(Config):
    """Representation alignment: hidden image tokens learn to tell what a vision model sees (arXiv 2410.06940)."""

    type: Literal["repa"] = "repa"
    path: str = Field(description="A folder with a vision transformer of Hugging Face, such as DINOv2 or DINOv3.")
    block: int = Field(8, ge=1, description="The block whose image tokens are aligned, the first being 1.")
    weight: float = Field(0.5, ge=0, description="Of the term in what is minimised; 0 leaves it out.")
    until: int | None = Field(None, gt=0, description="Steps that it is there for; null: to the end.")
    width: int = Field(1024, gt=0, description="Of the projector's two hidden layers.")


class ObjectiveConfig(Config):
    """What is learned, and at which noise levels."""

    prediction: PredictionConfig | None = Field(
        None,
        description="What the network puts out; the loss is on the velocity either way. Null: x for a fresh model, "
        "else what the model to go on from puts out.",
    )
    times: TimesConfig = Field(LogitNormalTimes(), description="Which noise levels are trained, and how often.")
    caption_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of samples trained without their caption, which guidance needs."
    )
    weight: Literal["samples", "tokens"] = Field(
        "samples", description="What counts alike in the loss of a step: every image, or every image token."
    )
    terms: list[RepaConfig] = Field([], description="What is minimised besides; `loss` stays without it.")

    @model_validator(mode="after")
    def _one_of_a_type(self) -> ObjectiveConfig:
        types = [term.type for term in self.terms]
        twice = sorted({name for name in types if types.count(name) > 1})
        if twice:
            raise ValueError(f"terms: {twice[0]} is there twice; its losses could not be told apart")
        return self
