"""Events as OpenAI streams them: server-sent events, written here rather than by FastAPI.

Two reasons. OpenAI's clients take a blank line for an event once they have seen an `id:`, and then fail at its empty
data: so comments are lines without a blank one behind them, which FastAPI's are not. And a reader who does not read has
to be let go.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
from starlette.responses import Response

from lens_serve.api.answers import client_gone, usage
from lens_serve.api.errors import ApiError, to_api_error
from lens_serve.api.fulfilment import PictureEvent, PreviewEvent, Started, StepEvent
from lens_serve.api.sending import Writer, dropped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import Receive, Scope, Send

    from lens_serve.api.fulfilment import Event
    from lens_serve.api.orders import Order

__all__ = ["HEARTBEAT_S", "EventStream", "Frame", "Kind", "frames"]

Kind = Literal["image_generation", "image_edit"]
"""What the names of events begin with."""

HEARTBEAT_S = 10.0
"""Proxies close connections on which nothing is said for a minute or so."""

logger = logging.getLogger(__name__)


class Frame(NamedTuple):
    """What goes over the wire: an event with its number in the stream, or a comment, which has none."""

    id: int | None
    data: bytes


async def frames(order: Order, events: AsyncIterator[Event], kind: Kind) -> AsyncIterator[Frame]:
    """The events of an order as frames; an error is the last of them. Closing it closes `events`."""
    number = 0
    try:
        async with aclosing(events):  # type: ignore[type-var]
            async for event in events:
                match event:
                    case Started():
                        continue
                    case StepEvent():
                        yield Frame(None, f": image {event.index} step {event.step}/{event.steps}\n".encode())
                        continue
                    case PreviewEvent():
                        name, data = f"{kind}.partial_image", _partial(order, event)
                    case PictureEvent():
                        name, data = f"{kind}.completed", _completed(order, event)
                yield _frame(number, {"type": name, **data}, name=name)
                number += 1
    except Exception as error:
        told = to_api_error(error)
        if told is None:
            logger.exception("order %s failed", order.id)
            told = ApiError(500, "The server failed.", code="internal")
        yield _frame(number, told.body, name="error")


def _frame(number: int, data: Mapping[str, Any], *, name: str) -> Frame:
    return Frame(number, b"event: %s\nid: %d\ndata: %s\n\n" % (name.encode(), number, msgspec.json.encode(data)))


def _common(order: Order) -> dict[str, Any]:
    return {
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": order.format,
        "quality": order.quality,
        "size": order.size,
    }


def _partial(order: Order, event: PreviewEvent) -> dict[str, Any]:
    return {
        **_common(order),
        "b64_json": base64.b64encode(event.data).decode(),
        "partial_image_index": event.number,
        "lens": {"index": event.index, "seed": order.seed},
    }


def _completed(order: Order, event: PictureEvent) -> dict[str, Any]:
    where = {"url": event.url} if order.url else {"b64_json": base64.b64encode(event.data).decode()}
    user = {} if order.user is None else {"safety_identifier": order.user}
    lens = {"index": event.index, "seed": order.seed, "revised_prompt": event.prompt, "receipt": event.receipt}
    return {**_common(order), **where, "usage": usage(order, [event]), **user, "lens": lens}


class EventStream(Response):
    """Sends frames until they end, the client goes, or it stops reading; then closes them.

    Args:
        source: the frames; it has to be an async generator.
        headers: further ones.
        held: closed at the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncIterator[Frame],
        *,
        headers: Mapping[str, str] | None = None,
        held: ExitStack | None = None,
    ):
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._source, self._held = source, held or ExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI wants it."""
        with self._held:
            await self._answer(receive, send)

    async def _answer(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        write = Writer(send)
        tasks = [
            asyncio.create_task(self._pump(write)),
            asyncio.create_task(self._beat(write)),
            asyncio.create_task(client_gone(receive)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._source.aclose()  # type: ignore[attr-defined]
        if tasks[2] in done:
            return  # there is nobody left
        try:
            await next(iter(done))
            await write(b"", more=False)
        except TimeoutError:
            dropped()

    async def _pump(self, write: Writer) -> None:
        async for frame in self._source:
            await write(frame.data)

    async def _beat(self, write: Writer) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await write(b": still here\n")
