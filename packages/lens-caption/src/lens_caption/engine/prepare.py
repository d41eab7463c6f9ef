"""From stored images to request bodies, off the event loop: that is nearly all of the client's work.

Threads do it. Image libraries leave the interpreter alone while they work, and what a process would cost, carrying
every image there and its request back, is more than what the threads lose by sharing an interpreter.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from lens_core.errors import LensError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_caption.engine.request import BadImage, PreparedRequest
    from lens_core.contracts import ImageItem

__all__ = ["Preparer"]

_prepare: Callable[[str, bytes], PreparedRequest | BadImage]


class Preparer:
    """A pool that makes requests; use it in a `with` block.

    Args:
        prepare: makes a request of an image's key and bytes; it is pickled once per process.
        workers: processes, for a `prepare` that is written in Python; 0 takes threads.
    """

    def __init__(self, prepare: Callable[[str, bytes], PreparedRequest | BadImage], workers: int):
        self._local = prepare if workers == 0 else None
        self.width = workers or min(4, os.cpu_count() or 1)
        self._pool: Executor
        if workers == 0:
            self._pool = ThreadPoolExecutor(self.width, thread_name_prefix="prepare")
        else:
            # Forking a process with threads may hang it; spawning takes longer and always works.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(prepare,))

    def __enter__(self) -> Preparer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def __call__(self, item: ImageItem) -> PreparedRequest | BadImage:
        """The request of one image; raises `LensError` if the pool is broken."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, self._local or _work, item.key, item.data)
        except BrokenProcessPool as error:
            raise LensError(
                "a process that prepares images died, out of memory perhaps; fewer engine.workers need less"
            ) from error


def _begin(prepare: Callable[[str, bytes], PreparedRequest | BadImage]) -> None:
    global _prepare  # a process of the pool has no other place that lasts
    _prepare = prepare
    # Ctrl-C goes to every process of the terminal; here the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its pool, whose processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(key: str, data: bytes) -> PreparedRequest | BadImage:
    return _prepare(key, data)
