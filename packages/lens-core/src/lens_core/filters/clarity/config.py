"""Settings of the clarity filter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["ClarityConfig"]


class ClarityConfig(ComponentConfig):
    """Drops images without sharp edges, by the variance of the Laplacian of their grey copy, 512 pixels long."""

    type: Literal["clarity"] = "clarity"
    min: float = Field(20.0, ge=0, description="Smallest variance that is kept; the paper does not give its own.")
