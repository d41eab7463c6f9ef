"""Settings of the entropy filter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["EntropyConfig"]


class EntropyConfig(ComponentConfig):
    """Drops images of few grey values, by the Shannon entropy of the grey histogram."""

    type: Literal["entropy"] = "entropy"
    min: float = Field(3.0, ge=0, le=8, description="Least bits that are kept; the paper does not give its own.")
