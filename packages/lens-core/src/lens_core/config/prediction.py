"""What a denoiser's output means: part of a model's identity, stored in its `lens.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import Config

__all__ = ["PredictionConfig"]


class PredictionConfig(Config):
    """The parametrisation of the output."""

    type: Literal["velocity", "x"] = Field(
        "velocity", description="What the network puts out: the velocity, or the image x0."
    )
    t_floor: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="For 'x': the smallest time to divide by, so that the loss near t = 0 stays bounded.",
    )
