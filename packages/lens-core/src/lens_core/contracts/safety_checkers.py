"""What may not be drawn, and what may not be handed out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SafetyChecker"]


class SafetyChecker(Protocol):
    """Looks at prompts, at pictures, or at both; built as `target(config)`.

    It is called from several threads at once. What it has no opinion about passes.
    """

    def check_prompt(self, prompt: str) -> str | None:
        """Why the prompt may not be drawn, fit to be shown to whoever asked; None if it may."""
        ...

    def check_image(self, image_HW3: np.ndarray) -> str | None:
        """Why the picture, uint8 [H, W, 3], may not be handed out; None if it may."""
        ...
