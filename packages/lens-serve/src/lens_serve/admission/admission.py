"""A request comes in, or is told the truth about when it can.

What waits is counted in predicted seconds of the device; `Room` has the bounds. Who is refused is promised a place at
the first time that is within all bounds and keeps all earlier promises, and may then come in whatever the backlog is.
See docs/explanation/backpressure.md.
"""

from __future__ import annotations

import hashlib
import math
import time
from typing import TYPE_CHECKING, Literal

from lens_serve.admission.backlog import Pace
from lens_serve.admission.quotas import Quotas
from lens_serve.admission.room import Asking, Room
from lens_serve.admission.tickets import Tickets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from lens_serve.admission.keys import Key
    from lens_serve.admission.quotas import Allowance
    from lens_serve.admission.tickets import Promise
    from lens_serve.config import AdmissionSettings
    from lens_serve.engine.messages import Draw

__all__ = ["Admission", "Admitted", "Refused"]

HORIZON_S = 60.0
"""How far ahead places are promised; beyond that, a key may have one. Nobody who comes later has to wait much longer,
and OpenAI's clients wait two minutes at most."""

Code = Literal["queue_full", "quota_exceeded", "concurrency", "draining", "deadline"]

_STATUS = {"draining": 503, "deadline": 504}
"""The others are 429."""


class Refused(Exception):
    """A request that is not let in.

    Args:
        code: why.
        message: why, for people.
        retry_after_s: when to come again; None: never.
        ticket: a place is kept for that time.
        retry: whether coming again at that time is known to help.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        retry_after_s: float | None = None,
        ticket: str | None = None,
        retry: bool = False,
    ):
        super().__init__(message)
        self.code: Code = code
        self.status = _STATUS.get(code, 429)
        self.message = message
        self.retry_after_s, self.ticket, self.retry = retry_after_s, ticket, retry


class Admitted:
    """A request that was let in; use it as a context, or call `release` when the request has ended, however it did.

    Args:
        admission: which counts it.
        key: whose it is.
        images: how many are still to be done.
        solo_s: seconds that it would take if it were alone.
        allowance: of its key's day.
        ends: when it should be done.
    """

    def __init__(self, admission: Admission, key: Key, images: int, solo_s: float, allowance: Allowance, ends: float):
        self.key, self.images, self.solo_s, self.ends = key, images, solo_s, ends
        self.at_engine = False
        self._admission, self._allowance = admission, allowance

    def submitted(self) -> None:
        """The engines count it from now on; say so just before the draws are handed to them."""
        self._admission.submitted(self)
        self.at_engine = True

    def charge(self, seconds: float, images: int = 1) -> None:
        """Images are done; they took so many seconds of the device."""
        self.images -= images
        self._allowance.charge(images, seconds)

    def release(self) -> None:
        """The request has ended; what it did not use comes back. A second time does nothing."""
        self._allowance.give_back()
        self._admission.released(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()


class Admission:
    """Lets requests in.

    Args:
        settings: the bounds.
        predict: seconds that a picture takes alone.
        backlog_s: seconds of work that the least loaded engine has.
        replicas: how many engines share the work.
        clock: what draws' deadlines are told by.
        wall: seconds since 1970, for quotas.

    Attributes:
        draining: nobody is let in any more.
    """

    def __init__(
        self,
        settings: AdmissionSettings,
        *,
        predict: Callable[[Draw], float],
        backlog_s: Callable[[], float],
        replicas: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ):
        self.draining = False
        self._ticket_s = settings.ticket_s
        self._predict, self._engine_backlog_s, self._replicas, self._clock = predict, backlog_s, replicas, clock
        self._quotas = Quotas(wall)
        self._tickets = Tickets()
        self._pace = Pace()
        self._inside: dict[int, Admitted] = {}
        self._room = Room(settings, self._inside.values, self._tickets, self._pace)

    @property
    def backlog_s(self) -> float:
        """Seconds of work of one engine, what is still on its way there included."""
        return self._engine_backlog_s() + self._on_its_way_s()

    @property
    def inside(self) -> int:
        """Requests that were let in and have not ended."""
        return len(self._inside)

    @property
    def promised(self) -> int:
        """Places that are kept for those who were refused."""
        return len(self._tickets.promises)

    @property
    def pace(self) -> float:
        """Predicted seconds of work done in a second, when there is always something to do."""
        return self._pace.value

    def admit(
        self, key: Key, draws: Sequence[Draw], *, ticket: str | None = None, repeated: bool | None = None
    ) -> Admitted:
        """Let a request in.

        Args:
            key: whose it is.
            draws: its pictures, at least one, all alike.
            ticket: of an earlier refusal.
            repeated: whether the client says that it was refused before; None: it says nothing about it.

        Raises:
            Refused: it cannot come in, or not now.
        """
        now = self._clock()
        engine_backlog_s = self._engine_backlog_s()  # a sum over all jobs: once is enough
        self._pace.observe(now, engine_backlog_s)
        self._tickets.expire(now)
        self._room.replicas = max(1, self._replicas())
        solo_s = sum(map(self._predict, draws))
        asked = self._tickets.digest(_asked(draws))
        one = Asking(key=key, asked=asked, solo_s=solo_s, now=now, level_s=engine_backlog_s + self._on_its_way_s())
        self._check_limits(one, len(draws))
        ends = now + self._room.ahead_s(one) / self._pace.value + solo_s
        deadline = draws[0].deadline
        if deadline is not None and now + solo_s > deadline:
            raise _too_late(f"This takes about {solo_s:.2f} s even on an idle server", deadline - now)
        promise = self._place(one, ticket, repeated)
        if deadline is not None and ends > deadline:
            raise _too_late(f"With what waits, this takes about {ends - now:.2f} s", deadline - now)
        if promise is not None:
            self._tickets.drop(promise)
        allowance = self._quotas.reserve(key, len(draws), solo_s)
        admitted = Admitted(self, key, len(draws), solo_s, allowance, ends)
        self._inside[id(admitted)] = admitted
        return admitted

    def submitted(self, admitted: Admitted) -> None:
        """The engines are about to get it."""
        self._pace.observe(self._clock(), self._engine_backlog_s())
        self._pace.added(admitted.solo_s / self._room.replicas)

    def released(self, admitted: Admitted) -> None:
        """A request has ended, done or not."""
        if self._inside.pop(id(admitted), None) is not None and admitted.images and admitted.at_engine:
            self._pace.begin_anew()

    def _on_its_way_s(self) -> float:
        """Seconds of work for one engine that was let in and is not handed to the engines yet."""
        return sum(one.solo_s for one in self._inside.values() if not one.at_engine) / self._room.replicas

    def _check_limits(self, one: Asking, images: int) -> None:
        """What holds for a key, or for everybody, however much room there is."""
        if self.draining:
            retry_after_s = max(1.0, one.level_s / self._pace.value)
            raise Refused("draining", "The server is shutting down.", retry_after_s=retry_after_s, retry=True)
        if excess := self._quotas.exceeded(one.key, images, one.solo_s):
            raise Refused("quota_exceeded", excess, retry_after_s=self._quotas.until_tomorrow_s())
        own = [other for other in self._inside.values() if other.key.id == one.key.id]
        if one.key.max_concurrent is not None and len(own) >= one.key.max_concurrent:
            soonest_s = max(0.1, min(other.ends for other in own) - one.now)
            message = f"This key may have {one.key.max_concurrent} requests at once, and has."
            raise Refused("concurrency", message, retry_after_s=soonest_s, retry=True)

    def _place(self, one: Asking, ticket: str | None, repeated: bool | None) -> Promise | None:
        """What lets a request in: a promise, or room, in which case it needs no promise any more.

        Raises:
            Refused: there is neither.
        """
        promise = self._tickets.read(ticket, one.key)
        if promise is not None and not promise.fits(one.asked, one.solo_s):
            promise = None
        if promise is not None and promise.at <= one.now:
            return promise
        possible = self._room.first_possible(one)
        if possible <= one.now:
            return promise
        if repeated is not False and (due := self._tickets.find(one.key, one.now, one.asked)):
            return due
        promise = promise or self._promise(one, possible)
        wait_s = promise.at - one.now
        raise Refused(
            "queue_full",
            f"The queue is full. A place is kept for this request in {wait_s:.1f} s.",
            retry_after_s=wait_s,
            ticket=self._tickets.ticket(promise),
            retry=True,
        )

    def _promise(self, one: Asking, possible: float) -> Promise:
        """Promise the first place that is free.

        Raises:
            Refused: no more can be promised.
        """
        promises = self._tickets.promises
        has_room = self._tickets.has_room(one.key)
        at = self._room.free_place(one, possible) if has_room else max(possible, promises[-1].at)
        first = all(other.key.id != one.key.id for other in promises)
        wait_s = at - one.now
        if not has_room or (wait_s > HORIZON_S and not first):
            message = "The queue is full, and so are the places that can be promised; ask less often."
            raise Refused("queue_full", message, retry_after_s=wait_s)
        # Who reads only whole seconds comes up to one later.
        until = one.now + math.ceil(wait_s) + self._ticket_s
        return self._tickets.promise(one.key, one.asked, one.solo_s, at, until)


def _too_late(takes: str, allowed_s: float) -> Refused:
    return Refused("deadline", f"{takes}, but deadline_ms allows only {max(0.0, allowed_s):.2f} s.")


def _asked(draws: Sequence[Draw]) -> str:
    """What a request asks for; the same when it is repeated, whatever seed it was given meanwhile."""
    one, start = draws[0], None
    if one.start is not None:
        pictures = one.start.pixels, one.start.mask or b""
        start = (one.start.strength, *(hashlib.sha256(picture).hexdigest() for picture in pictures))
    size = (one.height, one.width, one.steps, one.guidance, one.tier)
    return repr((len(draws), one.model, one.prompt, one.negative, size, one.lora, one.lora_scale, start))
