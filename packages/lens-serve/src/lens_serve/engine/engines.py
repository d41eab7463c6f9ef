"""All engines of a host as one: whoever wants a picture asks here, and need not know which engine draws it.

A job goes to the engine with the least predicted work. When an engine is lost, its jobs are drawn once more, elsewhere
or by its successor: what they draw is decided by their seeds, so nobody can tell. But one of them may be why it was
lost. So each engine has at most one such job at a time, and the guilty one soon stands alone.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lens_core.errors import LensError
from lens_serve.engine.client import EngineClient
from lens_serve.engine.events import EngineError, EngineLostError, Glimpse, Picture, Step
from lens_serve.engine.forecast import Forecast

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from lens_serve.config import ServeSettings
    from lens_serve.engine.cost import CostModel
    from lens_serve.engine.messages import Draw, Heartbeat, ModelInfo

__all__ = ["EngineError", "EngineState", "Engines", "Glimpse", "Picture", "Step"]

_SLACK = 1.5
"""How much longer than the last time an engine may take to load before jobs give it up."""


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """One engine, for health and metrics.

    Args:
        index: of the engine.
        pid: of its process, if there is one.
        is_ready: it draws.
        device: on what.
        heartbeat: the last one.
        heartbeat_age_s: how long ago that was.
        restarts: how often its process was started anew.
        jobs: that it has.
        backlog_s: predicted seconds of them.
        cost_error: of its predictions, by model; see `CostModel.error`.
    """

    index: int
    pid: int | None
    is_ready: bool
    device: str | None
    heartbeat: Heartbeat | None
    heartbeat_age_s: float | None
    restarts: int
    jobs: int
    backlog_s: float
    cost_error: dict[str, float]


class Engines:
    """The engines of a host.

    Args:
        settings: what is served, and how.
        command: starts an engine.
        patience_s: how long a job waits while no engine is ready; longer if they were known to take longer to load.
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        command: Sequence[str] = (sys.executable, "-m", "lens_serve.engine"),
        patience_s: float = 60.0,
    ):
        self._patience_s = patience_s
        self._homeless: dict[str, Draw] = {}
        self._changes = asyncio.Event()
        self._stopped = False
        self._clients = [
            EngineClient(index, settings, command=command, changed=self._changed)
            for index in range(settings.engine.replicas)
        ]

    async def start(self) -> None:
        """Start the engines; they become ready in their own time."""
        for client in self._clients:
            client.start()

    async def ready(self) -> None:
        """Wait until an engine is ready.

        Raises:
            LensError: none of them can run: the message is what an engine said.
        """
        while not self.is_ready:
            if all(client.exit_code == LensError.exit_code for client in self._clients):
                raise LensError(self._clients[0].last_line)
            await self._changes.wait()

    async def stop(self) -> None:
        """Kill the engines; when this returns, no process is left. Jobs under way fail."""
        self._stopped = True
        self._changed()
        await asyncio.gather(*(client.stop() for client in self._clients))

    @property
    def is_ready(self) -> bool:
        """Whether any engine draws."""
        return not self._stopped and self.ready_count > 0

    @property
    def ready_count(self) -> int:
        """How many engines draw."""
        return sum(client.is_ready for client in self._clients)

    @property
    def models(self) -> dict[str, ModelInfo]:
        """What is served, by name; empty until an engine was ready."""
        said = next((client.said for client in self._clients if client.said), None)
        return {model.name: model for model in said.models} if said else {}

    @property
    def states(self) -> list[EngineState]:
        """Of each engine."""
        return [
            EngineState(
                index=client.index,
                pid=client.pid,
                is_ready=client.is_ready,
                device=client.said.device if client.said else None,
                heartbeat=client.heartbeat,
                heartbeat_age_s=client.heartbeat_age_s,
                restarts=client.restarts,
                jobs=len(client.jobs),
                backlog_s=self._backlog_s(client),
                cost_error={name: cost.error for name, cost in client.costs.items()},
            )
            for client in self._clients
        ]

    def cost(self, model: str) -> CostModel:
        """What work with a model costs. Raises KeyError if no engine was ever ready with it."""
        return next((client.costs for client in self._clients if client.costs), {})[model]

    def predict_s(self, draw: Draw) -> float:
        """Seconds of a job that has an engine for itself."""
        return Forecast(draw, self.models[draw.model]).solo_s(self.cost(draw.model))

    def backlog_s(self) -> float:
        """Predicted seconds of work that was accepted and is not finished, of the engine that has the least."""
        clients = [client for client in self._clients if client.is_ready] or self._clients
        homeless_s = sum(map(self.predict_s, self._homeless.values())) / len(self._clients) if self.models else 0.0
        return min(map(self._backlog_s, clients)) + homeless_s

    async def draw(self, draw: Draw) -> AsyncIterator[Step | Glimpse | Picture]:
        """Draw a picture: its steps and glimpses as they come, and the picture at last.

        Steps and glimpses may be left out for a slow reader. Closing this, or cancelling who reads it, cancels the job.

        Raises:
            EngineError: it will not be drawn.
        """
        heard = {Step: 0, Glimpse: -1}
        for again in (False, True):
            client = await self._place(draw, again=again)
            with client.drawing(draw, Forecast(draw, self.models[draw.model]), again=again) as mailbox:
                while True:
                    try:
                        event = await mailbox.take()
                    except EngineLostError:
                        break
                    if isinstance(event, Picture):
                        yield event
                        return
                    number = event.step if isinstance(event, Step) else event.number
                    if number > heard[type(event)]:  # not what another engine had said before
                        heard[type(event)] = number
                        yield event
        raise EngineError("lost", "the engine was lost twice while it drew this picture")

    async def _place(self, draw: Draw, *, again: bool) -> EngineClient:
        """The engine that a job goes to; waits until there is one."""
        latest = math.inf if draw.deadline is None else draw.deadline
        give_up = math.inf
        patience_s = max(self._patience_s, *(_SLACK * client.loading_took_s for client in self._clients))
        self._homeless[draw.id] = draw
        try:
            while True:
                if self._stopped:
                    raise EngineError("unavailable", "the server stops")
                ready = [client for client in self._clients if client.is_ready]
                free = [c for c in ready if not again or not any(job.again for job in c.jobs.values())]
                if free:
                    return min(free, key=self._backlog_s)
                give_up = math.inf if ready else min(give_up, time.monotonic() + patience_s)
                until = min(give_up, latest)
                try:
                    async with asyncio.timeout(None if until == math.inf else until - time.monotonic()):
                        await self._changes.wait()
                except TimeoutError:
                    if until == latest:
                        raise EngineError("deadline", "the deadline passed before an engine was ready") from None
                    raise EngineError("unavailable", f"no engine was ready for {patience_s:.0f} s") from None
        finally:
            del self._homeless[draw.id]

    def _backlog_s(self, client: EngineClient) -> float:
        return sum(
            job.forecast.remaining_s(
                client.costs[job.draw.model],
                steps_left=job.steps_left,
                begun=job.begun,
                jobs=len(client.jobs),
                knee_tokens=client.knee_tokens[job.draw.model],
            )
            for job in client.jobs.values()
        )

    def _changed(self) -> None:
        self._changes.set()
        self._changes = asyncio.Event()
