"""The loop of an engine: hear what was said, then call one model once, again and again.

    TEXT    prompts are encoded, some jobs together
    STEPS   the scheduler says who takes the next step together: a tick
    PIXELS  a picture is decoded, one at a time
    SLOT    it waits for a place in the memory that the API process reads

What is nearest to its end goes first, so that a finished picture never waits for the steps of others. And whatever is
said meanwhile is heard between any two calls: a job that is cancelled or late costs nothing beyond the call it is in.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NoReturn

import torch

from lens_core.errors import ConfigError
from lens_serve.engine.calls import Calls
from lens_serve.engine.jobs import Job, Stage, job_of
from lens_serve.engine.messages import Cancel, Draw, Release
from lens_serve.engine.outbox import Outbox
from lens_serve.engine.pulse import Pulse
from lens_serve.engine.scheduler import Scheduler
from lens_serve.engine.trouble import blame, check_device, give_back, out_of_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lens_serve.config import EngineSettings
    from lens_serve.engine.cost import CostModel
    from lens_serve.engine.loaded import EngineModel
    from lens_serve.engine.messages import Reason, ToEngine
    from lens_serve.engine.wire import Channel, Slots

__all__ = ["Engine"]

IDLE_S = 0.25
"""Between two signs of life when there is nothing to do."""
HELD_S = 0.05
"""How long a job that ran out of memory waits for others to give some back."""
TOGETHER = 16
"""Prompts that are encoded in one call."""

log = logging.getLogger(__name__)


class Engine:
    """Draws what it is told to.

    Args:
        channel: to the API process.
        slots: where it wants the pictures.
        models: by the names that jobs use; all on one device.
        costs: of each model's calls.
        knee_tokens: that fill the device, for each model.
        settings: who goes first.

    Attributes:
        jobs: all that are neither done nor forgotten, by id.
        outbox: what is said of them.
        scheduler: of those at `Stage.STEPS`.
    """

    def __init__(
        self,
        channel: Channel,
        slots: Slots,
        models: Mapping[str, EngineModel],
        costs: Mapping[str, CostModel],
        knee_tokens: Mapping[str, int],
        settings: EngineSettings,
    ):
        self.jobs: dict[str, Job] = {}
        self._aside: dict[str, Job] = {}  # those that the scheduler does not have: few, however many wait for a step
        self._begun: set[str] = set()
        self.outbox = Outbox(channel, slots)
        self.scheduler = Scheduler(settings, costs, knee_tokens)
        self._channel, self._models = channel, models
        self._device = next(iter(models.values())).loaded.device
        self._pulse = Pulse(channel, costs, self.jobs, self._begun, self._device, knee_tokens)
        self._calls = Calls(self._pulse, costs, self._device, warm=settings.warm_up)

    def run(self) -> NoReturn:
        """Work until the other end of the channel is closed.

        Raises:
            ChannelClosedError: it is.
            DeviceLostError: the device has failed for good.
        """
        busy = True
        while True:
            self.hear(0.0 if busy else HELD_S if self.jobs else IDLE_S)
            busy = self.turn()

    def hear(self, wait_s: float = 0.0) -> None:
        """Take what was said, waiting for it so long at most."""
        for message in self._channel.receive(wait_s):
            self._take(message)

    @torch.inference_mode()
    def turn(self) -> bool:
        """Call a model once; False if there was nothing to do."""
        now = time.monotonic()
        self._drop_late(now)
        self._hand_over()
        ready = [job for job in self._aside.values() if job.held_until <= now]
        decodable = [job for job in ready if job.stage is Stage.PIXELS]
        fresh = [job for job in ready if job.stage is Stage.TEXT]
        if decodable:
            self._decode(decodable[0])
        elif fresh:
            self._encode(_first_batch(fresh))
        elif members := self._next_tick(ready, now):
            self._step(members)
        else:
            self._pulse.beat("idle", IDLE_S)
            return False
        return True

    def _take(self, message: ToEngine) -> None:
        if isinstance(message, Draw):
            self._accept(message)
        elif isinstance(message, Cancel):
            self._forget(message.id)
        elif isinstance(message, Release):
            self.outbox.taken.discard(message.slot)

    def _accept(self, draw: Draw) -> None:
        try:
            if draw.model not in self._models:
                raise ConfigError(f"there is no model {draw.model!r}")
            job = job_of(draw, self._models[draw.model], most_bytes=self.outbox.most_bytes)
            self.jobs[draw.id] = self._aside[draw.id] = job
        except ConfigError as error:
            self.outbox.failed(draw.id, "invalid", str(error))

    def _encode(self, jobs: list[Job]) -> None:
        failed = self._calls.encode(jobs).failed
        for job in jobs:
            if job not in failed:
                failed |= self._calls.begin(job).failed
            if job not in failed:
                job.stage = Stage.STEPS
                self._schedule(job)
        self._settle(failed)

    def _schedule(self, job: Job) -> None:
        job.held_until = 0.0
        del self._aside[job.draw.id]
        self.scheduler.add(job.entry)

    def _next_tick(self, ready: list[Job], now: float) -> list[Job]:
        for job in ready:
            if job.stage is Stage.STEPS:  # it was held for a while
                self._schedule(job)
        return [self.jobs[entry.id] for entry in self.scheduler.next_tick(now)]

    def _step(self, jobs: list[Job]) -> None:
        failed, seconds = self._calls.step(jobs)
        self.scheduler.took([job.entry for job in jobs], seconds, time.monotonic())
        for job in jobs:
            if job.drawing.taken > job.entry.taken:
                failed.pop(job, None)
                self._stepped(job)
        self._settle(failed)

    def _stepped(self, job: Job) -> None:
        job.entry.taken = job.drawing.taken
        self._begun.add(job.draw.id)
        self.outbox.stepped(job)
        if job.drawing.done:
            job.stage = Stage.PIXELS
            self._unschedule(job)
            self._calls.part()

    def _unschedule(self, job: Job) -> None:
        self.scheduler.remove(job.draw.id)
        self._aside[job.draw.id] = job

    def _decode(self, job: Job) -> None:
        failed = self._calls.decode(job).failed
        if not failed:
            job.stage = Stage.SLOT
            self._hand_over()
        self._settle(failed)

    def _hand_over(self) -> None:
        for job in [job for job in self._aside.values() if job.stage is Stage.SLOT]:
            if not self.outbox.hand_over(job):
                return
            self._forget(job.draw.id)

    def _forget(self, id: str) -> None:
        """Let go of a job, wherever it is."""
        self.jobs.pop(id, None)
        self._aside.pop(id, None)
        self._begun.discard(id)
        self.scheduler.remove(id)
        self._calls.part()

    def _fail(self, job: Job, reason: Reason, message: str) -> None:
        self._forget(job.draw.id)
        self.outbox.failed(job.draw.id, reason, message)

    def _drop_late(self, now: float) -> None:
        late = [self.jobs[entry.id] for entry in self.scheduler.expired(now)]
        late += [job for job in self._aside.values() if job.draw.deadline is not None and now > job.draw.deadline]
        for job in late:
            self._fail(job, "deadline", "the deadline has passed, or cannot be met any more")

    def _settle(self, failed: Mapping[Job, Exception]) -> None:
        """Say who failed and why; what ran out of memory has a second chance, alone and a little later."""
        if not failed:
            return
        self._calls.part()
        check_device(self._device)
        for job, error in failed.items():
            if out_of_memory(error) and not job.alone:
                self._hold(job)
                continue
            reason, message = blame(error)
            if reason in {"internal", "memory"}:
                log.error("job %s failed", job.draw.id, exc_info=error)
            self._fail(job, reason, message)
        for error in failed.values():
            error.__traceback__ = None  # whose frames hold what the call had made so far
        give_back(self._device)

    def _hold(self, job: Job) -> None:
        log.warning("job %s ran out of memory, and goes on alone", job.draw.id)
        job.alone = True
        job.held_until = time.monotonic() + HELD_S
        if job.stage is Stage.STEPS:
            self._unschedule(job)
            job.entry.group = job.group


def _first_batch(fresh: list[Job]) -> list[Job]:
    """Jobs whose prompts are encoded in the next call."""
    first = fresh[0]
    if not first.shares:
        return [first]
    return [job for job in fresh if job.shares and job.model is first.model][:TOGETHER]
