"""One engine as the API process knows it: a process that is started, listened to, watched, and started anew.

An engine may crash, run out of memory, or hang in a kernel; nothing of that reaches further than this file. When it is
lost, every job that it had is told so, and a new process takes its place after a pause. What an engine says is read at
once and never waits for whoever wants it, so a slow client holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from lens_core.errors import LensError
from lens_serve.engine.cost import CostModel
from lens_serve.engine.events import EngineError, EngineLostError, Glimpse, Mailbox, Picture, Step
from lens_serve.engine.messages import (
    Cancel,
    Draw,
    Drawn,
    Failed,
    FromEngine,
    Heartbeat,
    Preview,
    Progress,
    Ready,
    Release,
)
from lens_serve.engine.wire import Frames, Slots, frame

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable, Iterator, Sequence

    from lens_serve.config import ServeSettings
    from lens_serve.engine.forecast import Forecast

__all__ = ["EngineClient", "Pending"]

SLOTS = 4
"""Pictures that an engine may have finished and this process has not yet copied, which it does at once."""

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 10.0
_HEALTHY_S = 60.0
"""An engine that was ready for so long is no engine that cannot run: the pause before the next is the first again."""

_LOOK_S = 0.1
_CHUNK = 1 << 18
_LONGEST_LINE = 1 << 14
_LAST_WORDS_S = 5.0
"""For the standard error of a dead engine to end; a process that it started apart may hold it open."""


@dataclass(eq=False)
class Pending:
    """A picture that an engine has been asked for and has not ended.

    Args:
        draw: what was asked.
        forecast: of what it takes.
        again: an engine was lost over it before.
        steps_left: of the sampler.
        begun: it took a step.
        mailbox: where its events go.
    """

    draw: Draw
    forecast: Forecast
    again: bool
    steps_left: int
    begun: bool = False
    mailbox: Mailbox = field(default_factory=Mailbox)


class EngineClient:
    """Keeps one engine running.

    Args:
        index: of the engine among its replicas.
        settings: what the engine is told.
        command: what starts it; arguments follow.
        changed: called when the engine becomes ready, is lost, has ended, or ends a job.

    Attributes:
        pid: of the process, if there is one.
        is_ready: it draws.
        said: what it said of itself when it became ready; kept when it is lost.
        costs, knee_tokens: of each model, as it last reported them; kept likewise.
        heartbeat: the last one of this process, if any.
        jobs: those under way, by id.
        restarts: how often a process was started in place of another.
        loading_took_s: from the start of a process until it was ready, the last time; 0 if none ever was.
        last_line: the last whole one that the engine wrote to its standard error.
        exit_code: of the last process that ended; negative if a signal ended it.
    """

    def __init__(
        self,
        index: int,
        settings: ServeSettings,
        *,
        command: Sequence[str],
        changed: Callable[[], None] = lambda: None,
    ):
        self.index = index
        self._settings, self._command, self._changed = settings, list(command), changed
        self.pid: int | None = None
        self.is_ready = False
        self.said: Ready | None = None
        self.costs: dict[str, CostModel] = {}
        self.knee_tokens: dict[str, int] = {}
        self.heartbeat: Heartbeat | None = None
        self.jobs: dict[str, Pending] = {}
        self.restarts = 0
        self.last_line = ""
        self.exit_code: int | None = None
        self.loading_took_s = 0.0
        self._started_at = self._heard_at = self._ready_at = 0.0
        self._silent_s = 0.0
        self._writer: asyncio.StreamWriter | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._mistake: str | None = None  # of the last process, if that is why it ended: it is said once

    @property
    def heartbeat_age_s(self) -> float | None:
        """Seconds since the last heartbeat; None if no engine runs that said one."""
        return time.monotonic() - self._heard_at if self.heartbeat and self.pid else None

    def start(self) -> None:
        """Have an engine started, now and whenever it is lost."""
        self._keeper = asyncio.create_task(self._keep(), name=f"engine-{self.index}")

    async def stop(self) -> None:
        """Kill the engine; when this returns, its process is gone. Jobs under way are lost."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
            self._keeper = None

    @contextlib.contextmanager
    def drawing(self, draw: Draw, forecast: Forecast, *, again: bool = False) -> Iterator[Mailbox]:
        """Ask for a picture; who leaves before its end cancels it."""
        self._send(draw)
        job = self.jobs[draw.id] = Pending(draw, forecast, again, forecast.steps)
        try:
            yield job.mailbox
        finally:
            if self.jobs.get(draw.id) is job:
                self._end(draw.id)
                self._send(Cancel(id=draw.id))

    def _send(self, message: Draw | Cancel | Release) -> None:
        if self._writer is not None:  # what is lost anyway need not be said
            self._writer.write(frame(message))

    async def _keep(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            self._ready_at = 0.0
            try:
                why = await self._live()
            except Exception as error:  # whatever it is, there must be an engine again
                why = f"was lost: {type(error).__name__}: {error}"
            if self._ready_at and time.monotonic() - self._ready_at >= _HEALTHY_S:
                pause = _FIRST_PAUSE_S
            mistake = self.last_line if why == "ended" and self.exit_code == LensError.exit_code else None
            if mistake is None or mistake != self._mistake:
                again = "" if mistake is None else "; as long as it ends like this, nothing more is said"
                self._say(f"{why}; another is started in {pause:g} s{again}")
            self._mistake = mistake
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PAUSE_S)
            self.restarts += 1

    async def _live(self) -> str:
        """Start an engine, and see it through to its end, which is how the answer reads."""
        with contextlib.ExitStack() as held:
            slots = held.enter_context(contextlib.closing(Slots.create(SLOTS, 3 * self._settings.bounds.max_pixels)))
            ours, theirs = socket.socketpair()
            held.enter_context(ours)
            with theirs:
                self._started_at = time.monotonic()
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    *("--socket-fd", str(theirs.fileno()), "--memory-fd", str(slots.fd), "--slots", str(slots.count)),
                    *("--slot-bytes", str(slots.size), "--index", str(self.index)),
                    stdin=PIPE,
                    stdout=DEVNULL,
                    stderr=PIPE,
                    pass_fds=(theirs.fileno(), slots.fd),
                    start_new_session=True,  # an interrupt from the terminal is for the server, which drains first
                )
            self.pid, self._silent_s = process.pid, 0.0
            relay = asyncio.create_task(self._relay(process))
            tasks: list[asyncio.Task[str]] = []
            writer = None
            try:
                reader, writer = await asyncio.open_unix_connection(sock=ours)
                self._writer = writer
                tasks = [asyncio.create_task(self._listen(reader, slots)), asyncio.create_task(self._watch())]
                self._tell_settings(process)
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                return done.pop().result()
            finally:
                self._lose()
                for task in tasks:
                    task.cancel()
                if writer is not None:
                    writer.close()
                burial = asyncio.create_task(self._bury(process, [*tasks, relay]))
                try:
                    await asyncio.shield(burial)
                finally:
                    await burial  # to its end, though it should be interrupted by `stop`

    def _tell_settings(self, process: Process) -> None:
        assert process.stdin is not None
        settings = self._settings.model_dump(mode="json", include={"models", "engine"})
        costs = {name: cost.costs() for name, cost in self.costs.items()}  # so that a successor need not measure them
        process.stdin.write(msgspec.json.encode({**settings, "costs": costs, "knee_tokens": self.knee_tokens}))
        process.stdin.close()

    async def _bury(self, process: Process, tasks: list[asyncio.Task[Any]]) -> None:
        """Leave nothing of a process: it, and what it started, is killed and waited for."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what macOS says of a process that has ended
            os.killpg(process.pid, signal.SIGKILL)
        self.exit_code = await process.wait()
        _, waiting = await asyncio.wait(tasks, timeout=_LAST_WORDS_S)
        for task in waiting:
            task.cancel()
        self._changed()

    async def _listen(self, reader: asyncio.StreamReader, slots: Slots) -> str:
        frames = Frames(FromEngine)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                for message in frames.feed(data):
                    self._hear(message, slots)
        return "ended"

    async def _watch(self) -> str:
        """Wait until the engine has been silent for longer than it said it would be."""
        engine = self._settings.engine
        while True:
            expected_s = self.heartbeat.expected_s if self.heartbeat else 0.0
            patience_s = engine.watchdog_factor * expected_s + engine.watchdog_s if self.is_ready else engine.loading_s
            if self._silent_s > patience_s:
                doing = self.heartbeat.doing if self.heartbeat and self.is_ready else "loading"
                return f"hangs ({doing}: nothing heard for {self._silent_s:.1f} s) and was killed"
            before = time.monotonic()
            await asyncio.sleep(_LOOK_S)
            # If this process was held up, the engine may have spoken meanwhile: that is heard before the next look.
            self._silent_s += min(time.monotonic() - before, 2 * _LOOK_S)

    async def _relay(self, process: Process) -> None:
        """Pass on what the engine writes to its standard error."""
        assert process.stderr is not None
        rest = b""
        while data := await process.stderr.read(_CHUNK):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.last_line = line.decode(errors="replace")
                if self.last_line != self._mistake:
                    self._say(self.last_line)
            rest = rest[-_LONGEST_LINE:]
        if rest:
            self._say(rest.decode(errors="replace"))

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # whoever read it may have gone; engines are kept for others
            sys.stderr.write(f"engine {self.index}: {line}\n")
            sys.stderr.flush()

    def _hear(self, message: FromEngine, slots: Slots) -> None:
        match message:
            case Heartbeat():
                self.heartbeat, self._heard_at, self._silent_s = message, time.monotonic(), 0.0
                if message.costs:
                    self.costs.update((name, CostModel(costs)) for name, costs in message.costs.items())
            case Ready():
                self.said, self.is_ready, self._ready_at, self._silent_s = message, True, time.monotonic(), 0.0
                self.loading_took_s = self._ready_at - self._started_at
                self._mistake = None
                self.costs = {name: CostModel(costs) for name, costs in message.costs.items()}
                self.knee_tokens = message.knee_tokens
                self._changed()
            case Progress():
                if job := self.jobs.get(message.id):
                    job.steps_left, job.begun = message.steps - message.step, True
                    job.mailbox.put(Step(step=message.step, steps=message.steps))
            case Preview():
                if job := self.jobs.get(message.id):
                    image = np.frombuffer(message.pixels, np.uint8).reshape(message.height, message.width, 3)
                    job.mailbox.put(Glimpse(number=message.number, image_HW3=image))
            case Drawn():
                picture = Picture(
                    image_HW3=slots.read(message.slot, message.height, message.width),
                    latent_sha256=message.latent_sha256,
                    pixel_sha256=message.pixel_sha256,
                    seconds=message.seconds,
                    features=message.features,
                )
                self._send(Release(slot=message.slot))
                self._end(message.id, picture)
            case Failed():
                self._end(message.id, EngineError(message.reason, message.message))

    def _end(self, id: str, how: Picture | EngineError | EngineLostError | None = None) -> None:
        """A job is over; an id that was cancelled meanwhile is nobody's."""
        if job := self.jobs.pop(id, None):
            if how is not None:
                job.mailbox.put(how)
            self._changed()

    def _lose(self) -> None:
        """Forget an engine that ended, and let its jobs know."""
        self.is_ready = False
        self.pid = self.heartbeat = self._writer = None
        for id in list(self.jobs):
            self._end(id, EngineLostError())
        self._changed()
