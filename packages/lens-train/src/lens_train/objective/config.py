"""Settings of the objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import Config
from lens_core.config.prediction import PredictionConfig

__all__ = ["ObjectiveConfig"]


class ObjectiveConfig(Config):
    """What is learned, and at which noise levels."""

    prediction: PredictionConfig = Field(
        PredictionConfig(type="x"), description="What the network puts out; the loss is on the velocity either way."
    )
    timestep_mean: float | Literal["resolution"] = Field(
        0.0,
        description="Mean of the logit-normal timesteps: larger means noisier. 'resolution' grows it with the image, "
        "as the paper does: 1.0 at 256 tokens, 1.3 at 4096.",
    )
    timestep_std: float = Field(1.0, gt=0, description="Standard deviation of the logit-normal timesteps.")
    caption_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of samples trained without their caption, which guidance needs."
    )
