"""What the processes of a server hold, looked at again and again."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from serve_load.running import Running, Usage

__all__ = ["Watch"]

_SETTLED = 0.2
"""Caches and pools fill up in this part of the time: growth is told of the rest."""


class Watch:
    """Looks at a server while it is open; use it as a context.

    Args:
        server: which.
        every_s: between two looks.
    """

    def __init__(self, server: Running, *, every_s: float):
        self._server, self._every_s = server, every_s
        self._seen: list[tuple[float, dict[str, Usage]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._seen.append((time.monotonic(), self._server.usage()))

    def report(self) -> dict[str, dict[str, Any]]:
        """Of each process: the most that it held, and how its memory grew."""
        return {name: self._of(name) for name in self._seen[0][1]}

    async def _look(self) -> None:
        while True:
            self._seen.append((time.monotonic(), self._server.usage()))
            await asyncio.sleep(self._every_s)

    def _of(self, name: str) -> dict[str, Any]:
        seen = [(at, usages[name]) for at, usages in self._seen]
        later = seen[int(_SETTLED * len(seen)) :]
        slope = statistics.linear_regression([at for at, _ in later], [usage.rss_mb for _, usage in later]).slope
        return {
            "most fds": max(usage.fds for _, usage in seen),
            "most threads": max(usage.threads for _, usage in seen),
            "rss MB, first": seen[0][1].rss_mb,
            "rss MB, settled": later[0][1].rss_mb,
            "rss MB, last": seen[-1][1].rss_mb,
            "rss MB, a minute more": 60 * slope,
            "rss MB": [round(usage.rss_mb, 1) for _, usage in seen[:: max(1, len(seen) // 60)]],
        }
