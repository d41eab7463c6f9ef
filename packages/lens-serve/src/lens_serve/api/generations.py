"""`POST /v1/images/generations`: images for a prompt, at once or as events."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response  # noqa: TC002 (FastAPI reads annotations at run time)

from lens_serve.api.answers import collect, images_answer, json_answer, unless_gone
from lens_serve.api.auth import ImagesKey  # noqa: TC001 (FastAPI reads annotations at run time)
from lens_serve.api.errors import answers
from lens_serve.api.fulfilment import carry_out
from lens_serve.api.idempotency import IdempotencyKey, body_hash
from lens_serve.api.orders import Place, generation_order
from lens_serve.api.recording import Recording
from lens_serve.api.schemas import Generation, ImagesAnswer, StreamEvent
from lens_serve.api.sse import EventStream, frames
from lens_serve.watch.logs import note

if TYPE_CHECKING:
    from lens_serve.api.orders import Order
    from lens_serve.api.sse import Kind
    from lens_serve.server import Server

__all__ = ["IMAGES", "PlaceOf", "Same", "deliver", "router"]

router = APIRouter(tags=["images"])

Ticket = Annotated[
    str | None, Header(alias="x-lens-ticket", max_length=1024, description="From a 429: the place that it reserved.")
]
Retries = Annotated[str | None, Header(alias="x-stainless-retry-count", include_in_schema=False)]


async def place_of(ticket: Ticket = None, retries: Retries = None) -> Place:
    """What our own clients say of an earlier refusal; OpenAI's say it when they repeat a request by themselves."""
    # A coroutine, though it waits for nothing: what is none is run in a thread, one for each request.
    return Place(ticket=ticket, repeated=None if retries is None else retries != "0")


PlaceOf = Annotated[Place, Depends(place_of)]

IMAGES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Images; with `stream`, events, each of whose `data` is a StreamEvent, or an ErrorAnswer.",
        "model": ImagesAnswer | StreamEvent,
    },
    **answers(400, 401, 403, 404, 409, 429, 500, 503, 504),
}
"""What routes that draw may answer."""


@router.post("/v1/images/generations", responses=IMAGES)
async def generate(
    asked: Generation, request: Request, key: ImagesKey, place: PlaceOf, idempotency_key: IdempotencyKey = None
) -> Response:
    """Draw images for a prompt."""
    server: Server = request.app.state.server
    order = generation_order(server, asked, key=key, place=place)
    same = Same(idempotency_key, body_hash(request.url.path, asked))
    return await deliver(server, request, order, "image_generation", same, stream=bool(asked.stream))


class Same(NamedTuple):
    """What makes a request the same as an earlier one."""

    idempotency_key: str | None
    body_hash: bytes


async def deliver(server: Server, request: Request, order: Order, kind: Kind, same: Same, *, stream: bool) -> Response:
    """Carry an order out and answer with it. Whatever can be refused is refused before the answer begins."""
    note(request.scope, **order.facts)
    with ExitStack() as held:
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
        held.callback(recording.leave)  # `once` has joined it
        order, events = recording.order, recording.read()
        headers = {"x-lens-rewrite": recording.started.rewritten.outcome}
        if stream:
            return EventStream(frames(order, events, kind), headers=headers, held=held.pop_all())
        pictures = await unless_gone(request, collect(events))
        return json_answer(images_answer(order, pictures), headers=headers)
