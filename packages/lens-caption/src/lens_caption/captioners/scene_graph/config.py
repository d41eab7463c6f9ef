"""Settings of the scene-graph captioner."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["SceneGraphConfig"]


class SceneGraphConfig(ComponentConfig):
    """Words an exact scene graph; free, instant and never wrong."""

    type: Literal["scene-graph"] = "scene-graph"
    style: Literal["alt-text", "brief", "dense"] = Field("dense", description="How much is said.")
    seed: int = Field(0, ge=0, description="Of the wording.")
