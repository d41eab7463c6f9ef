"""What is heard of a picture while it is drawn, and the box in which that waits for its reader."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lens_serve.engine.messages import Reason

__all__ = ["EngineError", "EngineLostError", "Glimpse", "Mailbox", "Picture", "Step"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step was taken: `step` of `steps`, counted from 1."""

    step: int
    steps: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Glimpse:
    """What the picture looks like under way: uint8 [H, W, 3], usually smaller than the picture; counted from 0."""

    number: int
    image_HW3: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """The picture, uint8 [H, W, 3], and what a receipt says of it; see `messages.Drawn`."""

    image_HW3: NDArray[np.uint8]
    latent_sha256: str
    pixel_sha256: str
    seconds: dict[str, float]
    features: dict[str, str]


class EngineError(Exception):
    """A picture will not be drawn.

    Args:
        reason: as in `messages.Failed`; "unavailable": there is no engine that could draw it; or "lost": two engines
            ended over it, and another would.
        message: one line for the client.
    """

    def __init__(self, reason: Reason | Literal["unavailable", "lost"], message: str):
        super().__init__(message)
        self.reason = reason
        self.message = message


class EngineLostError(Exception):
    """The engine ended while it drew a picture; another may draw the same one."""


_KEPT = {Step: 32, Glimpse: 4}
"""Of events that nobody has read. Of glimpses a job has three at most, and a slow reader only wants the last."""


class Mailbox:
    """Events of one job, in the order in which they happened, for one reader.

    Whoever puts something in never waits: when a reader is slow, the oldest steps and glimpses give way. What ends a
    job is kept.
    """

    def __init__(self) -> None:
        self._events: deque[Step | Glimpse | Picture | EngineError | EngineLostError] = deque()
        self._filled = asyncio.Event()

    def put(self, event: Step | Glimpse | Picture | EngineError | EngineLostError) -> None:
        """Add an event."""
        alike = [kept for kept in self._events if type(kept) is type(event)]
        if len(alike) >= _KEPT.get(type(event), len(alike) + 1):
            self._events.remove(alike[0])
        self._events.append(event)
        self._filled.set()

    async def take(self) -> Step | Glimpse | Picture:
        """The next event; waits for it.

        Raises:
            EngineError, EngineLostError: if that is how the job ended.
        """
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        event = self._events.popleft()
        if isinstance(event, EngineError | EngineLostError):
            raise event
        return event
