"""Settings of the scene expander."""

from __future__ import annotations

from typing import Literal

from lens_core.config.base import ComponentConfig

__all__ = ["SceneExpanderConfig"]


class SceneExpanderConfig(ComponentConfig):
    """Completes a short scene prompt by rule, in the dense style; it has no options."""

    type: Literal["scene-expander"] = "scene-expander"
