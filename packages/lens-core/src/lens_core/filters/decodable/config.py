"""Settings of the decodable filter."""

from __future__ import annotations

from typing import Literal

from lens_core.config.base import ComponentConfig

__all__ = ["DecodableConfig"]


class DecodableConfig(ComponentConfig):
    """Drops images that cannot be decoded completely; it has no options."""

    type: Literal["decodable"] = "decodable"
