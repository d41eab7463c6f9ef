"""Settings of the decodable filter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["DecodableConfig"]


class DecodableConfig(ComponentConfig):
    """Drops images that cannot be decoded completely."""

    type: Literal["decodable"] = "decodable"
    animated: Literal["first-frame", "drop"] = Field(
        "first-frame", description="What becomes of animations: their first frame is the image, or they are dropped."
    )
