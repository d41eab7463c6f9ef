"""What a connection may cost before anybody knows whose it is: time, bytes of headers, and places for others.

uvicorn reads headers without end, and waits for them as long as a client likes; and it keeps what a client does not
read. Bodies have limits of their own, in `lens_serve.api.outermost`.
"""

from __future__ import annotations

import contextlib
import resource
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

__all__ = ["MAX_CONNECTIONS", "MAX_HEAD_BYTES", "MAX_HEAD_LINES", "MAX_PIPELINED", "Connection", "raise_file_limit"]

MAX_CONNECTIONS = 2000
MAX_HEAD_BYTES = 64 << 10
MAX_HEAD_LINES = 200
"""Of a request's head, and of the lines that may follow its body; each takes much more memory here than on its way."""
MAX_PIPELINED = 8
"""Requests that wait behind another one of their connection; uvicorn takes as many as come in one piece."""
HEAD_S = 15.0
"""For the head of a request, from its first byte or from connecting."""
IDLE_S = 20.0
"""Between an answer and the next request."""
DEAF_S = 120.0
"""How long a client may read nothing of what waits for it."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with limits."""

    _waiting: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _head_lines = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it up, if there is room."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._expect(HEAD_S)

    def data_received(self, data: bytes) -> None:
        """Read on; what neither begins a request nor belongs to its body ends the connection if it never ends."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head_bytes = self._head_lines = 0
        self._expect(HEAD_S)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of its head, or one of those that may follow a body in chunks, which uvicorn keeps with the head's."""
        self._head_lines += 1
        if self._head_lines > MAX_HEAD_LINES:
            raise ValueError("too many header lines")  # which ends the parser, and uvicorn answers 400
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its head is complete; the application sees to the rest."""
        self._expect(None)
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()
            raise ValueError("too many requests at once")  # which ends the parser

    def on_body(self, body: bytes) -> None:
        """Some of its body came."""
        super().on_body(body)
        self._head_bytes = 0

    def on_response_complete(self) -> None:
        """It is answered; unless another waits behind it, one may come."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._expect(IDLE_S)

    def pause_writing(self) -> None:
        """More waits for the client than the kernel takes."""
        super().pause_writing()
        self._stalled = self.loop.call_later(DEAF_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._expect(None)
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def _expect(self, seconds: float | None) -> None:
        """End the connection unless something happens within that time; None: it may take its time."""
        if self._waiting is not None:
            self._waiting.cancel()
        self._waiting = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


def raise_file_limit() -> None:
    """Let this process have as many files open as its connections need, if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_CONNECTIONS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(ValueError, OSError):
        limit: Any = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
