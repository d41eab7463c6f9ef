"""Other people's code in threads that nobody has to wait for: a rewriter, a checker, a disk far away.

A pool's threads are waited for at the end of the process, however long a hung call takes. These end with the process,
and whoever asks gives up after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Threads", "in_a_thread"]

Result = TypeVar("Result")


def in_a_thread(work: Callable[[], Result], *, name: str) -> asyncio.Future[Result]:
    """What a function returns or raises, called in a thread of its own that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()
    context = contextvars.copy_context()

    def came(say: Callable[[], None]) -> None:
        if not future.cancelled():
            say()

    def run() -> None:
        say: Callable[[], None]
        try:
            say = partial(future.set_result, context.run(work))
        except Exception as error:
            say = partial(future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(came, say)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


class Threads:
    """Runs so many calls at once; one that hangs keeps its place until it ends.

    Args:
        name: of the threads.
        most: calls at once.
        timeout_s: how long whoever asks waits, for a place and for the answer together.
    """

    def __init__(self, name: str, *, most: int, timeout_s: float):
        self._name, self._timeout_s = name, timeout_s
        self._places = asyncio.Semaphore(most)

    async def run(self, work: Callable[[], Result]) -> Result:
        """What the function returns or raises.

        Raises:
            TimeoutError: it takes too long, or all places are taken.
        """
        async with asyncio.timeout(self._timeout_s):
            await self._places.acquire()
            future = in_a_thread(work, name=self._name)
            future.add_done_callback(self._ended)
            return await asyncio.shield(future)  # whose place is free when it ends, not when nobody waits any more

    def _ended(self, future: asyncio.Future[Result]) -> None:
        self._places.release()
        future.exception()  # it may be that nobody asks any more
