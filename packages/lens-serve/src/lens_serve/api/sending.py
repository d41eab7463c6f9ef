"""Sending what is large, no faster than it is read, and not for ever."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Send

__all__ = ["SLOWEST", "WRITE_S", "Writer", "dropped"]

WRITE_S = 30.0
"""A reader who takes nothing for so long is dropped."""

SLOWEST = 1 << 16
"""Bytes a second: a reader who takes less in the long run is dropped too, since what waits for it takes up memory."""

_PIECE = 1 << 16
logger = logging.getLogger(__name__)


class Writer:
    """Writes one event or body at a time, in pieces: a slow reader takes each in time, if not all of a large one.

    Args:
        send: of ASGI.
    """

    def __init__(self, send: Send):
        self._send, self._turn = send, asyncio.Lock()

    async def __call__(self, data: bytes, *, more: bool = True) -> None:
        """Write; with `more`, something follows.

        Raises:
            TimeoutError: the reader takes nothing, or too little.
        """
        async with self._turn, asyncio.timeout(WRITE_S + len(data) / SLOWEST):
            for begin in range(0, len(data) or 1, _PIECE):
                piece, last = data[begin : begin + _PIECE], begin + _PIECE >= len(data)
                async with asyncio.timeout(WRITE_S):
                    await self._send({"type": "http.response.body", "body": piece, "more_body": more or not last})


def dropped() -> None:
    """Say that a reader was."""
    logger.info("dropped a reader that took nothing for %g s, or less than %d bytes a second", WRITE_S, SLOWEST)
