"""Carrying an order out: admitted, checked, rewritten, drawn, checked again, made a file.

Every way to ask for images - one answer, a stream of events, a job to fetch later - reads the same events from
`carry_out`. Closing it, at any time and in any stage, gives up everything that was begun.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lens_serve.admission.admission import Refused
from lens_serve.api.errors import ApiError, to_api_error
from lens_serve.engine.events import EngineError, Glimpse, Picture, Step
from lens_serve.images.store import new_name
from lens_serve.provenance.receipt import receipt
from lens_serve.safety.gate import CheckFailed, Unsafe
from lens_serve.watch.traces import span, stages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from typing import Any

    import numpy as np

    from lens_serve.api.orders import Order
    from lens_serve.engine.messages import Draw
    from lens_serve.rewriting import Rewritten
    from lens_serve.server import Server

__all__ = ["Event", "PictureEvent", "PreviewEvent", "Started", "StepEvent", "carry_out"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """The order was accepted and its prompt decided on; always the first event."""

    rewritten: Rewritten


@dataclass(frozen=True)
class StepEvent:
    """Image `index` took a step."""

    index: int
    step: int
    steps: int


@dataclass(frozen=True)
class PreviewEvent:
    """What image `index` looks like under way: a file."""

    index: int
    number: int
    data: bytes


@dataclass(frozen=True)
class PictureEvent:
    """Image `index` is done: a file, where it was stored if it was, and how it was made."""

    index: int
    data: bytes
    url: str | None
    receipt: dict[str, Any]
    prompt: str
    text_tokens: int


Event = Started | StepEvent | PreviewEvent | PictureEvent


async def carry_out(server: Server, order: Order) -> AsyncIterator[Event]:
    """Admit an order, check and rewrite its prompt, draw, check, encode, sign and store its images.

    Raises:
        Refused: before the first event, if the server is too busy.
        Unsafe, EngineError, ApiError: at any time.
    """
    place, stage = order.place, "prompt"
    try:
        draws = order.draws(order.prompt)
        admitted = server.admission.admit(order.key, draws, ticket=place.ticket, repeated=place.repeated)
    except Refused as refused:
        server.metrics.refused(refused.code)
        raise
    events: asyncio.Queue[Event | Exception] = asyncio.Queue()
    tasks: list[asyncio.Task[None]] = []
    reached = [0.0] * order.n
    try:
        rewritten = await _decide_on_prompt(server, order)
        yield Started(rewritten)
        stage = "draw"
        for draw in order.draws(rewritten.text):
            tasks.append(asyncio.create_task(_draw(server, order, draw, rewritten, events, reached)))
        admitted.submitted()
        left = order.n
        while left:
            event = await events.get()
            if isinstance(event, Exception):
                if _is_our_fault(event):
                    reached[:] = [0.0] * order.n
                raise event
            if isinstance(event, PictureEvent):
                admitted.charge(admitted.solo_s / order.n)  # whatever the company was
                reached[event.index] = 0.0
                left -= 1
            yield event
    except (asyncio.CancelledError, GeneratorExit):
        server.metrics.cancelled(stage)
        raise
    except Exception as error:
        _report(server, order, error)
        raise
    finally:
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:  # whoever is cancelled again while waiting
            # What was drawn and not handed out took time all the same; what we failed to draw nobody pays for.
            admitted.charge(admitted.solo_s / order.n * sum(reached), images=0)
            admitted.release()


def _is_our_fault(error: Exception) -> bool:
    """Whether the server failed, rather than that a client asked for what is not to be had."""
    if isinstance(error, EngineError):
        return error.reason not in {"deadline", "invalid", "memory"}
    return isinstance(error, CheckFailed) or not isinstance(error, Unsafe)


def _report(server: Server, order: Order, error: Exception) -> None:
    """Count and log a failure of the server: the status of a stream that has begun, or of a job, does not tell it.

    Where in the code something went wrong that nobody foresaw, whoever answers logs.
    """
    told = to_api_error(error)
    if told is None:
        server.metrics.failed("internal")
    elif told.status >= 500:
        server.metrics.failed(told.code)
        # The cause may name paths: it is for the operator only.
        cause = "" if error.__cause__ is None else f" {error.__cause__}"
        logger.error("order %s failed: %s%s", order.id, told.message, cause)


async def _decide_on_prompt(server: Server, order: Order) -> Rewritten:
    """The prompt is checked, and what is drawn as well, since a rewriter may add what nobody asked for.

    A negative prompt is not: whoever wants no blood in his picture has to say so.
    """
    try:
        async with asyncio.timeout(None if order.deadline is None else order.deadline - time.monotonic()):
            with _stage(server, "check"):
                await server.gate.check_prompt(order.prompt, "prompt")
            with _stage(server, "rewrite"):
                rewritten = await server.rewriting.rewrite(
                    order.prompt, seed=order.rewrite_seed, wanted=order.rewrite, key_id=order.key.id
                )
            if rewritten.text != order.prompt:
                with _stage(server, "check"):
                    await server.gate.check_prompt(rewritten.text, "rewritten prompt")
            return rewritten
    except TimeoutError:
        raise ApiError(504, "The deadline has passed.", code="deadline", headers={"x-should-retry": "false"}) from None


async def _draw(
    server: Server,
    order: Order,
    draw: Draw,
    rewritten: Rewritten,
    events: asyncio.Queue[Event | Exception],
    reached: list[float],
) -> None:
    """Draw one image and tell all that happens; the last thing is its picture, or what went wrong.

    `reached` is told which share of its steps was taken.
    """
    try:
        async with aclosing(server.engines.draw(draw)) as heard:  # type: ignore[type-var]
            async for event in heard:
                match event:
                    case Step():
                        reached[draw.index] = event.step / event.steps
                        events.put_nowait(StepEvent(draw.index, event.step, event.steps))
                    case Glimpse():
                        await server.gate.check_image(event.image_HW3)
                        data = await _encode(server, order, event.image_HW3, {"preview": event.number})
                        events.put_nowait(PreviewEvent(draw.index, event.number, data))
                    case Picture():
                        server.metrics.drawn(draw.model, event.seconds)
                        stages(event.seconds)
                        events.put_nowait(await _finish(server, order, draw, rewritten, event))
    except Exception as error:  # the reader raises it
        events.put_nowait(error)


async def _finish(server: Server, order: Order, draw: Draw, rewritten: Rewritten, picture: Picture) -> PictureEvent:
    with _stage(server, "check"):
        await server.gate.check_image(picture.image_HW3)
    made = receipt(order, draw, picture, rewritten, order.model, server.settings)
    with _stage(server, "file"):
        data = await _encode(server, order, picture.image_HW3, made)
        url = None if server.store is None else await server.store.put(new_name(order.format), data)
    text_tokens = int(picture.features.get("text_tokens", 0))
    return PictureEvent(draw.index, data, url, made, rewritten.text, text_tokens)


async def _encode(server: Server, order: Order, image_HW3: np.ndarray, receipt: Mapping[str, Any]) -> bytes:
    return await server.encoders.encode(
        image_HW3,
        format=order.format,
        compression=order.compression,
        receipt=receipt,
        from_picture=order.start is not None,
    )


@contextmanager
def _stage(server: Server, name: str) -> Iterator[None]:
    """Time a stage of a request, for metrics and traces."""
    began = time.monotonic()
    with span(name):
        yield
    server.metrics.observe_stage(name, time.monotonic() - began)
