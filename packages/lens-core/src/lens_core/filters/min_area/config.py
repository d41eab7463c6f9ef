"""Settings of the area filter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["MinAreaConfig"]


class MinAreaConfig(ComponentConfig):
    """Drops images with too few pixels."""

    type: Literal["min-area"] = "min-area"
    pixels: int = Field(384 * 384, gt=0, description="Smallest area that is kept, in pixels (the paper's is 384²).")
