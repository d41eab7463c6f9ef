"""Settings of the pixel "autoencoder"."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["PixelsConfig"]


class PixelsConfig(ComponentConfig):
    """No compression: a token is a square patch of pixels."""

    type: Literal["pixels"] = "pixels"
    patch: int = Field(8, gt=0, le=64, description="Side of a patch in pixels.")
