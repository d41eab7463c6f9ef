"""Settings of the luminance filter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lens_core.config.base import ComponentConfig

__all__ = ["LuminanceConfig"]


class LuminanceConfig(ComponentConfig):
    """Drops images that are too dark or too bright, by the mean of HSV's V (0 to 1)."""

    type: Literal["luminance"] = "luminance"
    min: float = Field(0.05, ge=0, le=1, description="Darkest that is kept; the paper does not give its own.")
    max: float = Field(0.98, ge=0, le=1, description="Brightest that is kept; the paper does not give its own.")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> LuminanceConfig:
        if self.min >= self.max:
            raise ValueError(f"min ({self.min:g}) must be less than max ({self.max:g})")
        return self
