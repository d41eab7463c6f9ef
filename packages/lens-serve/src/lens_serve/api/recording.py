"""The events of an order, taken down while it is carried out, so that any number of readers can hear all of them.

Readers come and go, early or late, and each hears everything from the beginning. That is what jobs are read from, and
what a repeated request is answered with. An order is given up when its last listener goes, unless it is kept.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from lens_serve.api.errors import ApiError, to_api_error
from lens_serve.api.fulfilment import PictureEvent, PreviewEvent, Started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from lens_serve.api.fulfilment import Event
    from lens_serve.api.orders import Order

__all__ = ["Recording"]

logger = logging.getLogger(__name__)

_EVENT_BYTES = 256
"""What an event without its file takes, roughly."""


class Recording:
    """An order under way, or done; made with `begin`.

    Args:
        order: what is carried out.
        kept: whether it goes on when nobody listens.
    """

    def __init__(self, order: Order, *, kept: bool):
        self.order, self.kept = order, kept
        self.events: list[Event] = []
        self.error: Exception | None = None
        self._traceback: TracebackType | None = None
        self.cancelled = self.finished = False
        # A picture that it starts from is kept with the order.
        self.nbytes = 0 if order.start is None else len(order.start.pixels) + len(order.start.mask or b"")
        self._listeners = 0
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def begin(cls, order: Order, events: AsyncIterator[Event], *, kept: bool = False) -> Recording:
        """Take down an order's events in a task, and wait for the first.

        Raises:
            Exception: whatever ended the order before its first event.
        """
        recording = cls(order, kept=kept)
        recording._task = asyncio.create_task(recording._take_down(events))
        try:
            while not (recording.events or recording.finished):
                await recording._news.wait()
        except asyncio.CancelledError:
            await recording.cancel()
            raise
        if not recording.events:
            recording._check()
        return recording

    @property
    def key_id(self) -> str:
        """Whose it is."""
        return self.order.key.id

    @property
    def started(self) -> Started:
        """Its first event."""
        first = self.events[0]
        assert isinstance(first, Started)
        return first

    @property
    def good(self) -> bool:
        """Whether it has not failed, or not yet."""
        return self.error is None

    @property
    def pictures(self) -> list[PictureEvent]:
        """Those that are done, in order."""
        done = [event for event in self.events if isinstance(event, PictureEvent)]
        return sorted(done, key=lambda picture: picture.index)

    async def read(self) -> AsyncIterator[Event]:
        """All events, those to come included.

        Raises:
            Exception: what ended the order, if it failed.
        """
        place = 0
        while True:
            news, over = self._news, self.finished
            while place < len(self.events):
                yield self.events[place]
                place += 1
            if over:
                break
            await news.wait()
        self._check()

    def join(self) -> None:
        """Somebody listens from now on, and says `leave` at the end."""
        self._listeners += 1

    def leave(self) -> None:
        """Somebody listens no more; with the last it is given up, unless it is kept."""
        self._listeners -= 1
        if not self._listeners and not self.kept and self._task is not None:
            self._task.cancel()

    async def cancel(self) -> None:
        """Give it up, whoever listens; return when all of it has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _take_down(self, events: AsyncIterator[Event]) -> None:
        try:
            async with aclosing(events):  # type: ignore[type-var]
                async for event in events:
                    size = len(event.data) if isinstance(event, PreviewEvent | PictureEvent) else 0
                    self.nbytes += _EVENT_BYTES + size
                    self.events.append(event)
                    self._tell()
        except asyncio.CancelledError:
            self.cancelled = True
            never = {"x-should-retry": "false"}
            self.error = ApiError(409, "The images were given up.", code="cancelled", headers=never)
            raise
        except Exception as error:  # its readers raise it
            self.error = error
            if self.kept:
                if to_api_error(error) is None:  # it may be that nobody reads it
                    logger.exception("order %s failed", self.order.id)
                # Their frames hold pictures, for as long as this is kept.
                error.__traceback__ = error.__cause__ = error.__context__ = None
            self._traceback = error.__traceback__
        finally:
            self.finished = True
            self._tell()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error.with_traceback(self._traceback)  # not that of the reader before

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
