"""One answer with all images; and the watch for clients who go before it is ready."""

from __future__ import annotations

import asyncio
import base64
import time
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.responses import Response

from lens_serve.api.fulfilment import PictureEvent
from lens_serve.api.sending import Writer, dropped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from lens_serve.api.fulfilment import Event
    from lens_serve.api.orders import Order

__all__ = ["ClientGoneError", "ImagesResponse", "client_gone", "collect", "images_answer", "unless_gone", "usage"]

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody to answer."""


async def collect(events: AsyncIterator[Event]) -> list[PictureEvent]:
    """Read events to their end and return the pictures in order."""
    async with aclosing(events):  # type: ignore[type-var]
        pictures = [event async for event in events if isinstance(event, PictureEvent)]
    return sorted(pictures, key=lambda picture: picture.index)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled if the client goes first.

    Raises:
        ClientGoneError: if it does.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(client_gone(request.receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
    return await task


async def client_gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def usage(order: Order, pictures: Sequence[PictureEvent]) -> dict[str, Any]:
    """Tokens of text that the model saw, and of image that it made."""
    text = sum(picture.text_tokens for picture in pictures)
    made = order.image_tokens * len(pictures)
    seen = made if order.start is not None else 0
    return {
        "input_tokens": text + seen,
        "input_tokens_details": {"text_tokens": text, "image_tokens": seen},
        "output_tokens": made,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
        "total_tokens": text + seen + made,
    }


def images_answer(order: Order, pictures: Sequence[PictureEvent]) -> dict[str, Any]:
    """OpenAI's body with all images; see `lens_serve.api.schemas.ImagesAnswer`."""
    user = {} if order.user is None else {"safety_identifier": order.user}
    return {
        "created": int(time.time()),
        "data": [_image(order, picture) for picture in pictures],
        "background": "opaque",
        "output_format": order.format,
        "quality": order.quality,
        "size": order.size,
        "usage": usage(order, pictures),
        **user,
        "lens": {"seed": order.seed, "images": [picture.receipt for picture in pictures]},
    }


def _image(order: Order, picture: PictureEvent) -> dict[str, Any]:
    where = {"url": picture.url} if order.url else {"b64_json": base64.b64encode(picture.data).decode()}
    return {**where, "revised_prompt": picture.prompt}


class ImagesResponse(Response):
    """JSON with images, a few megabytes as a rule: encoded quickly, and sent no faster than it is read.

    Args:
        body: of the answer.
        status: of HTTP.
        headers: further ones.
        held: closed when all of it is sent, or its reader has gone or takes nothing any more.
    """

    media_type = "application/json"

    def __init__(
        self,
        body: Any,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        held: ExitStack | None = None,
    ):
        super().__init__(msgspec.json.encode(body), status, headers)
        self._held = held or ExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI wants it."""
        with self._held:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await Writer(send)(bytes(self.body), more=False)
            except TimeoutError:
                dropped()
