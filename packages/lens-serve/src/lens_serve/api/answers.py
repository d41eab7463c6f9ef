"""One answer with all images; and the watch for clients who go before it is ready."""

from __future__ import annotations

import asyncio
import base64
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.responses import Response

from lens_serve.api.fulfilment import PictureEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from starlette.requests import Request
    from starlette.types import Receive

    from lens_serve.api.fulfilment import Event
    from lens_serve.api.orders import Order

__all__ = ["ClientGoneError", "client_gone", "collect", "images_answer", "json_answer", "unless_gone", "usage"]

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


def json_answer(body: Any, **options: Any) -> Response:
    """JSON, encoded quickly: a few megabytes of base64 are common."""
    return Response(msgspec.json.encode(body), media_type="application/json", **options)
