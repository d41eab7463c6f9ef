"""The options of the components. Light: read whenever a pipeline that names one of them is checked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig


class PaletteConfig(ComponentConfig):
    """Options of `acme-palette`."""

    type: Literal["acme-palette"] = "acme-palette"
    colours: int = Field(3, ge=1, le=8, description="How many colours a caption names at most.")


class StripesConfig(ComponentConfig):
    """Options of `acme-stripes`."""

    type: Literal["acme-stripes"] = "acme-stripes"
    count: int = Field(gt=0, description="How many pictures to make.")
    size: int = Field(32, ge=16, le=1024, multiple_of=8, description="Width and height in pixels.")


class MlpConfig(ComponentConfig):
    """Options of `acme-mlp`."""

    type: Literal["acme-mlp"] = "acme-mlp"
    width: int = Field(256, gt=0, description="Channels of the hidden layers.")
    depth: int = Field(4, gt=0, description="Hidden layers.")


class CosineConfig(ComponentConfig):
    """Options of `acme-cosine`."""

    type: Literal["acme-cosine"] = "acme-cosine"
    steps: int = Field(20, ge=1, le=1000, description="How many steps to take.")
