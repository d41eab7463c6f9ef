"""An order is carried out, and its images are the answer: all at once, or as events on the way.

A request that was made before is answered with what was drawn then; the order is not carried out again.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from lens_serve.api.answers import ImagesResponse, collect, images_answer, unless_gone
from lens_serve.api.errors import answers
from lens_serve.api.fulfilment import carry_out
from lens_serve.api.recording import Recording
from lens_serve.api.schemas import ImagesAnswer, StreamEvent
from lens_serve.api.sse import EventStream, frames
from lens_serve.watch.logs import note

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.responses import Response

    from lens_serve.api.orders import Order
    from lens_serve.api.sse import Kind
    from lens_serve.server import Server

__all__ = ["IMAGES", "Same", "deliver"]

IMAGES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Images; with `stream`, events, each of whose `data` is a StreamEvent, or an ErrorAnswer.",
        "model": ImagesAnswer | StreamEvent,
    },
    **answers(400, 401, 403, 404, 409, 429, 500, 503, 504),
}
"""What routes that draw may answer."""


class Same(NamedTuple):
    """What makes a request the same as an earlier one."""

    idempotency_key: str | None
    body_hash: bytes


async def deliver(server: Server, request: Request, order: Order, kind: Kind, same: Same, *, stream: bool) -> Response:
    """Carry an order out and answer with it. Whatever can be refused is refused before the answer begins."""
    note(request.scope, **order.facts)
    with ExitStack() as held, ExitStack() as joined:
        if stream:
            held.enter_context(server.streaming(order.key))
        begun = server.idempotency.once(
            order.key.id,
            same.idempotency_key,
            same.body_hash,
            lambda: Recording.begin(order, carry_out(server, order), kept=same.idempotency_key is not None),
            repeated=bool(order.place.repeated),
        )
        recording = await unless_gone(request, begun)
        joined.callback(recording.leave)  # `once` has joined it
        if recording.order is not order and not stream:
            held.enter_context(server.streaming(order.key))  # nobody was let in for it, so nothing else bounds these
        order, events = recording.order, recording.read()
        headers = {"x-lens-rewrite": recording.started.rewritten.outcome}
        if stream:
            held.push(joined.pop_all())
            return EventStream(frames(order, events, kind), headers=headers, held=held.pop_all())
        pictures = await unless_gone(request, collect(events))
        # The answer holds the images once more; however slowly it is read, the recording need not wait for that.
        return ImagesResponse(images_answer(order, pictures), headers=headers, held=held.pop_all())
