"""Who looks at a model while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Watcher"]


class Watcher(Protocol):
    """Looks at the averaged weights every so many steps, and once the run ends."""

    @property
    def every(self) -> int:
        """Steps between looks."""
        ...

    def look(self, step: int) -> dict[str, float]:
        """What there is to see, for the line of metrics; all ranks call this, and get the same."""
        ...

    def judge(self, seen: Mapping[str, float]) -> None:
        """Say whether the run may end with what was seen last.

        Raises:
            LensError: it falls short of what was asked for.
        """
        ...
