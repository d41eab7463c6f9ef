"""What is around every request: a name for it, a limit for its body, and an answer whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from lens_serve.api.auth import HEADERS
from lens_serve.api.errors import ApiError, answer
from lens_serve.watch.logs import log_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from lens_serve.watch.metrics import Metrics
    from lens_serve.watch.traces import Traces

__all__ = ["BODY_S", "BodyLimit", "Outermost"]

BODY_S = 120.0
"""A body has to come within this time."""

_SAFE = re.compile(r"[A-Za-z0-9._-]{1,64}")

logger = logging.getLogger(__name__)


class Outermost:
    """Puts `x-request-id` on every answer, the client's own if it is harmless; answers 500 where all else failed; and
    tells metrics, traces and log.

    Args:
        app: what is inside.
        metrics: told of every request.
        traces: likewise.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces):
        self._app, self._metrics, self._traces = app, metrics, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as ASGI wants it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        name = sent if _SAFE.fullmatch(sent) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name
        began, status = time.monotonic(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        with self._traces.request(Headers(scope=scope)) as facts:
            try:
                await self._app(scope, receive, named)
            except Exception:
                logger.exception("request %s failed", name)
                if status:
                    raise  # an answer has begun; closing the connection is all that can be said
                # The door keeper, who sees to headers, is inside of this.
                failed = ApiError(500, "The server failed.", code="internal", headers=HEADERS)
                await answer(failed)(scope, receive, named)
            finally:
                route, seconds = getattr(scope.get("route"), "path", "other"), time.monotonic() - began
                facts.update(name=f"{scope['method']} {route}", status=status, request=name)
                self._metrics.observe_request(route, status, seconds)
                log_request(scope, status, seconds)


class BodyLimit:
    """Refuses bodies that are too large before they are read, those that do not come, and too many uploads of a key.

    Starlette's own limit answers in plain text, which OpenAI's clients do not understand.

    Args:
        app: what is inside.
        limits: bytes by path, of uploads.
        otherwise: bytes elsewhere.
    """

    def __init__(self, app: ASGIApp, limits: Mapping[str, int], otherwise: int):
        self._app, self._limits, self._otherwise = app, limits, otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as ASGI wants it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._otherwise)
        message = f"The body is larger than {limit} bytes"
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            await answer(ApiError(413, f"{message}.", code="body_too_large"))(scope, receive, send)
            return
        held = contextlib.ExitStack()
        if scope["path"] in self._limits:
            try:
                held.enter_context(scope["app"].state.server.receiving(scope["state"]["key"]))
            except ApiError as error:
                await answer(error)(scope, receive, send)
                return
        seen, complete, end = 0, False, asyncio.get_running_loop().time() + BODY_S

        async def counted() -> Message:
            nonlocal seen, complete
            try:
                async with asyncio.timeout_at(None if complete else end):
                    received = await receive()
            except TimeoutError:
                raise HTTPException(408, "The body did not come in time") from None
            seen += len(received.get("body", b""))
            complete = not received.get("more_body", False)
            if complete:
                held.close()
            if seen > limit:
                raise HTTPException(413, message)
            return received

        with held:
            await self._app(scope, counted, send)
