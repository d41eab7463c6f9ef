"""From a user's prompt to one like the captions a model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Rewriter"]


class Rewriter(Protocol):
    """Rewrites prompts; built as `target(config)`."""

    def rewrite(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        """One text per prompt, in order; a prompt it does not understand comes back unchanged."""
        ...
