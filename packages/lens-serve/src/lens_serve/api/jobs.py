"""`/v1/images/jobs`: images that are drawn whether anybody waits or not, to be asked for and watched.

Jobs live in this process's memory: for a day, a thousand of them, half a gigabyte at most, the oldest go first. They do
not outlive the server.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from lens_serve.api.answers import ImagesResponse, images_answer, unless_gone
from lens_serve.api.auth import ImagesKey  # noqa: TC001 (FastAPI reads annotations at run time)
from lens_serve.api.errors import ApiError, ErrorBody, answers, to_api_error
from lens_serve.api.fulfilment import StepEvent, carry_out
from lens_serve.api.idempotency import IdempotencyKey, body_hash
from lens_serve.api.orders import generation_order
from lens_serve.api.places import PlaceOf  # noqa: TC001
from lens_serve.api.recording import Recording
from lens_serve.api.schemas import Generation, ImagesAnswer, StreamEvent
from lens_serve.api.shelf import DAY_S, Shelf
from lens_serve.api.sse import EventStream, frames
from lens_serve.watch.logs import note

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lens_serve.admission.keys import Key
    from lens_serve.api.fulfilment import Event
    from lens_serve.api.orders import Order
    from lens_serve.api.sse import Frame
    from lens_serve.server import Server

__all__ = ["ImageJob", "JobAnswer", "Jobs", "router"]

router = APIRouter(tags=["jobs"])

PATH = "/v1/images/jobs"

Status = Literal["queued", "running", "completed", "failed", "cancelled"]


class JobUrls(BaseModel):
    """Where to ask for it, to cancel it, and to hear of it."""

    job: str = Field(description="GET: how it stands; DELETE: give it up.")
    events: str = Field(description="GET: its events, those to come included.")


class JobAnswer(BaseModel):
    """A job."""

    id: str
    object: Literal["image.job"] = "image.job"
    created_at: int = Field(description="Unix time.")
    expires_at: int = Field(description="Unix time; it may be forgotten earlier if memory is short.")
    status: Status
    progress: int = Field(ge=0, le=100, description="Percent of its steps.")
    model: str
    urls: JobUrls
    result: ImagesAnswer | None = Field(None, description="What `/v1/images/generations` would have answered.")
    error: ErrorBody | None = Field(None, description="Why it failed.")


class ImageJob:
    """An order that is carried out for whoever asks later."""

    def __init__(self, recording: Recording, *, jobs: Jobs):
        self.id = f"imgjob_{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.recording = recording
        self._jobs = jobs

    @property
    def key_id(self) -> str:
        """Whose it is."""
        return self.recording.order.key.id

    @property
    def finished(self) -> bool:
        """Whether nothing more happens to it."""
        return self.recording.finished

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return self.recording.nbytes

    @property
    def good(self) -> bool:
        """Whether a repeated request gets this one: as long as it is known, unless it failed by itself."""
        return self in self._jobs and (self.recording.good or self.recording.cancelled)

    def join(self) -> None:
        """A job needs nobody."""

    def leave(self) -> None:
        """Nor does it mind who goes."""

    async def cancel(self) -> None:
        """Give it up; return when all of it has ended."""
        await self.recording.cancel()

    @property
    def status(self) -> Status:
        """How it stands."""
        if not self.finished:
            return "running" if len(self.recording.events) > 1 else "queued"
        if self.recording.cancelled:
            return "cancelled"
        return "completed" if self.recording.good else "failed"

    @property
    def progress(self) -> int:
        """Percent of the steps of all its images."""
        order = self.recording.order
        taken = {event.index: event.step for event in self.recording.events if isinstance(event, StepEvent)}
        taken |= {picture.index: order.steps for picture in self.recording.pictures}
        return 100 * sum(taken.values()) // (order.steps * order.n)

    def describe(self) -> dict[str, Any]:
        """See `JobAnswer`."""
        url = f"{PATH}/{self.id}"
        told: dict[str, Any] = {
            "id": self.id,
            "object": "image.job",
            "created_at": self.created,
            "expires_at": self.created + int(DAY_S),
            "status": self.status,
            "progress": self.progress,
            "model": self.recording.order.model.name,
            "urls": {"job": url, "events": f"{url}/events"},
        }
        if told["status"] == "completed":
            told["result"] = images_answer(self.recording.order, self.recording.pictures)
        if self.recording.error is not None:
            unforeseen = ApiError(500, "The server failed.", code="internal")
            told.update((to_api_error(self.recording.error) or unforeseen).body)
        return told


class Jobs:
    """The jobs of a server.

    Args:
        shelf: where they are kept, by their ids.
    """

    def __init__(self, shelf: Shelf[str, ImageJob]):
        self._shelf = shelf

    async def begin(self, order: Order, events: AsyncIterator[Event]) -> ImageJob:
        """Carry out an order as a job.

        Raises:
            Exception: whatever ended it before its first event: a refusal, for instance.
        """
        job = ImageJob(await Recording.begin(order, events, kept=True), jobs=self)
        self._shelf.put(job.id, job)
        return job

    def of(self, key: Key, id: str) -> ImageJob:
        """A job of somebody's.

        Raises:
            ApiError: 404, also for those of others: whether there are any is nobody's business but an administrator's.
        """
        job = self._shelf.get(id)
        if job is None or (job.key_id != key.id and not key.may("admin")):
            raise ApiError(404, "There is no such job, or not any more.", code="job_not_found", param="id")
        return job

    def __contains__(self, job: ImageJob) -> bool:
        return self._shelf.get(job.id) is job

    async def stop(self) -> None:
        """Give up those under way."""
        await asyncio.gather(*(job.cancel() for job in self._shelf if not job.finished))


JobId = Annotated[str, Path(max_length=64, description="Of the job.")]
LastEventId = Annotated[
    int | None, Header(alias="last-event-id", ge=0, lt=2**31, description="Leave out events up to this one.")
]


@router.post(
    PATH,
    status_code=202,
    response_model=JobAnswer,
    responses=answers(400, 401, 403, 404, 409, 413, 429, 500, 503, 504),
)
async def create_job(
    asked: Generation, request: Request, key: ImagesKey, place: PlaceOf, idempotency_key: IdempotencyKey = None
) -> Response:
    """Begin to draw, and answer at once. The body is that of `/v1/images/generations`."""
    server: Server = request.app.state.server
    order = generation_order(server, asked, key=key, place=place)
    note(request.scope, **order.facts)
    begun = server.idempotency.once(
        key.id,
        idempotency_key,
        body_hash(PATH, asked),
        lambda: server.jobs.begin(order, carry_out(server, order)),
        repeated=bool(place.repeated),
    )
    job = await unless_gone(request, begun)
    headers = {"location": f"{PATH}/{job.id}", "x-lens-rewrite": job.recording.started.rewritten.outcome}
    return _answer(server, key, job, status=202, headers=headers)


@router.get(PATH + "/{id}", response_model=JobAnswer, responses=answers(400, 401, 403, 404, 429))
async def get_job(id: JobId, request: Request, key: ImagesKey) -> Response:
    """How a job stands, and its images when they are done."""
    server: Server = request.app.state.server
    return _answer(server, key, server.jobs.of(key, id))


@router.delete(PATH + "/{id}", response_model=JobAnswer, responses=answers(400, 401, 403, 404, 429))
async def cancel_job(id: JobId, request: Request, key: ImagesKey) -> Response:
    """Give a job up; one that has ended stays as it is."""
    server: Server = request.app.state.server
    job = server.jobs.of(key, id)
    await job.cancel()
    return _answer(server, key, job)


def _answer(server: Server, key: Key, job: ImageJob, **options: Any) -> Response:
    """How a job stands. With its images it counts among the key's streams: whoever has a job may ask again and again.

    Raises:
        ApiError: 429 if the key has too many already.
    """
    with ExitStack() as held:
        if job.status == "completed":
            held.enter_context(server.streaming(key))
        return ImagesResponse(job.describe(), held=held.pop_all(), **options)


@router.get(
    PATH + "/{id}/events",
    response_class=Response,
    responses={200: {"description": "Events.", "model": StreamEvent}, **answers(400, 401, 403, 404, 429)},
)
async def watch_job(id: JobId, request: Request, key: ImagesKey, last_event_id: LastEventId = None) -> Response:
    """The events of `/v1/images/generations` with `stream`, from the first on, or from where a reader was cut off."""
    server: Server = request.app.state.server
    recording = server.jobs.of(key, id).recording
    note(request.scope, **recording.order.facts)
    with ExitStack() as held:
        held.enter_context(server.streaming(key))
        told = frames(recording.order, recording.read(), "image_generation")
        return EventStream(_after(last_event_id, told), held=held.pop_all())


async def _after(last: int | None, told: AsyncIterator[Frame]) -> AsyncIterator[Frame]:
    """Without the events up to one of them; comments among them are old, too."""
    heard = -1
    async with aclosing(told):  # type: ignore[type-var]
        async for frame in told:
            old = last is not None and heard < last
            heard = heard if frame.id is None else frame.id
            if not old:
                yield frame
