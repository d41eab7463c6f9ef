"""What is counted, for Prometheus. Served on a port of its own, so that a proxy in front never shows it by accident.

Labels take few values, all of them ours: no label holds what a client said.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, make_asgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lens_serve.api.auth import Doorkeeper
from lens_serve.connection import Connection
from lens_serve.listening import Http, listening

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from lens_serve.admission.admission import Admission
    from lens_serve.admission.keys import Keyring
    from lens_serve.config import ListenSettings
    from lens_serve.engine.engines import Engines, EngineState

__all__ = ["Metrics"]

_REQUEST_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_TICK_S = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 1, 3, 10)
_LOOK_S = 0.25


class Metrics:
    """What is counted, and how to read it.

    Args:
        engines: asked for their state whenever somebody reads.
        admission: likewise.
    """

    def __init__(self, engines: Engines, admission: Admission | None = None):
        self.registry = CollectorRegistry()
        self.images = 0
        counted = self.registry
        self._requests = Counter("lens_requests", "Requests answered.", ["route", "status"], registry=counted)
        self._seconds = Histogram(
            "lens_request_seconds", "From request to answer.", ["route"], buckets=_REQUEST_S, registry=counted
        )
        self._refused = Counter("lens_refusals", "Requests that were not let in.", ["code"], registry=counted)
        self._failed = Counter("lens_failures", "Requests that were let in, and failed.", ["code"], registry=counted)
        self._images = Counter("lens_images", "Images drawn.", ["model"], registry=counted)
        self._stages = Histogram(
            "lens_stage_seconds", "What an image spent in a stage.", ["stage"], buckets=_REQUEST_S, registry=counted
        )
        self._cancelled = Counter("lens_cancels", "Given up by their clients.", ["stage"], registry=counted)
        self._ticks = Histogram(
            "lens_tick_seconds", "A step of all that share it; a sample.", buckets=_TICK_S, registry=counted
        )
        ProcessCollector(registry=counted)
        self.registry.register(_States(lambda: engines.states, admission))
        self._engines = engines
        self._seen: dict[int, int] = {}
        self._sampling: asyncio.Task[None] | None = None
        self._answering: asyncio.Task[None] | None = None
        self._http: Http | None = None
        self._socket: socket.socket | None = None
        self.port: int | None = None

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            route: the path as it was registered, without a client's values; "other" for those of no route.
            status: of HTTP; 499 if the client went before the answer began.
            seconds: it took.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """An image, or its prompt, went through a stage."""
        self._stages.labels(stage).observe(seconds)

    def drawn(self, model: str, seconds: Mapping[str, float]) -> None:
        """An image was drawn.

        Args:
            model: its name.
            seconds: by stage, as the engine says.
        """
        self.images += 1
        self._images.labels(model).inc()
        for stage, spent in seconds.items():
            self.observe_stage(stage, spent)

    def refused(self, code: str) -> None:
        """A request was not let in."""
        self._refused.labels(code).inc()

    def failed(self, code: str) -> None:
        """The server failed at a request, whatever status its answer had begun with."""
        self._failed.labels(code).inc()

    def cancelled(self, stage: str) -> None:
        """A client went while its request was in a stage."""
        self._cancelled.labels(stage).inc()

    def bind(self, listen: ListenSettings) -> None:
        """Take the port, if `listen.metrics_port` is not null; `start` does it too, where nobody did before.

        Raises:
            ConfigError: it is taken.
        """
        if self._socket is None and listen.metrics_port is not None:
            self._socket = listening(
                listen.host,
                listen.metrics_port,
                key="listen.metrics_port",
                advice="choose another, or null for no metrics",
            )
            self.port = self._socket.getsockname()[1]

    async def start(self, listen: ListenSettings, keyring: Keyring | None = None) -> None:
        """Answer at `listen.metrics_port`, if it is not null, until `stop`; `port` tells which it is.

        Args:
            listen: where.
            keyring: who may read, by a key for "metrics"; None: anybody.

        Raises:
            ConfigError: the port is taken.
        """
        self._sampling = asyncio.create_task(self._sample())
        self.bind(listen)
        if self._socket is None:
            return
        told = make_asgi_app(self.registry)
        app = Doorkeeper(told, listen, keyring=lambda _: keyring, purpose="metrics", open_to_all=None)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            http=Connection,
            ws="none",
            timeout_graceful_shutdown=2,
        )
        self._http = Http(config)
        self._answering = asyncio.create_task(self._http.serve(sockets=[self._socket]))

    async def stop(self) -> None:
        """No socket or task is left when this returns."""
        if self._sampling is not None:
            self._sampling.cancel()
            await asyncio.wait([self._sampling])
        if self._http is not None and self._answering is not None:
            self._http.should_exit = True
            await self._answering
        if self._socket is not None:
            self._socket.close()
        self._sampling = self._answering = self._http = self._socket = self.port = None

    async def _sample(self) -> None:
        """Ticks are told by heartbeats, of which the last one is known: several ticks may pass between two looks."""
        while True:
            for state in self._engines.states:
                beat = state.heartbeat
                if beat is not None and beat.tick and self._seen.get(state.index) != beat.tick:
                    self._seen[state.index] = beat.tick
                    self._ticks.observe(beat.tick_s)
            await asyncio.sleep(_LOOK_S)


class _States(Collector):
    """What is true at the moment, read from those who know."""

    def __init__(self, states: Callable[[], Sequence[EngineState]], admission: Admission | None):
        self._states, self._admission = states, admission

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are told by what is collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        states = self._states()
        by_engine: list[tuple[str, str, Callable[[EngineState], float | None]]] = [
            ("lens_engine_ready", "1 if the engine draws.", lambda one: float(one.is_ready)),
            ("lens_engine_jobs", "Images that the engine has.", lambda one: one.jobs),
            ("lens_engine_backlog_seconds", "Predicted seconds of them.", lambda one: one.backlog_s),
            ("lens_engine_heartbeat_age_seconds", "Since its last sign of life.", lambda one: one.heartbeat_age_s),
        ]
        for name, text, value in by_engine:
            yield _gauge(name, text, ["engine"], {(str(one.index),): value(one) for one in states})
        beats = {(str(one.index),): one.heartbeat for one in states if one.heartbeat is not None}
        by_beat = [
            ("lens_running_images", "Images between their first and last step.", "running"),
            ("lens_waiting_images", "Images before their first step.", "waiting"),
            ("lens_tick_sequences", "Sequences in the last step.", "sequences"),
            ("lens_tick_tokens", "Tokens in the last step.", "tokens"),
            ("lens_tick_occupancy", "These tokens, over those that fill the device.", "occupancy"),
            ("lens_tick_last_seconds", "What the last step took.", "tick_s"),
            ("lens_tick_predicted_seconds", "What it was predicted to take.", "predicted_s"),
        ]
        for name, text, field in by_beat:
            yield _gauge(name, text, ["engine"], {labels: getattr(beat, field) for labels, beat in beats.items()})
        memory: dict[tuple[str, ...], float | None] = {}
        for labels, beat in beats.items():
            memory |= {(*labels, "resident"): beat.rss_bytes, (*labels, "device"): beat.device_bytes}
        yield _gauge("lens_engine_memory_bytes", "Memory of the engine's process.", ["engine", "kind"], memory)
        errors: dict[tuple[str, ...], float | None] = {
            (str(one.index), model): error for one in states for model, error in one.cost_error.items()
        }
        yield _gauge(
            "lens_cost_error", "Mean of |log(measured / predicted)| of steps, lately.", ["engine", "model"], errors
        )
        ticks = CounterMetricFamily("lens_ticks", "Steps since the engine started.", labels=["engine"])
        for labels, beat in beats.items():
            ticks.add_metric(labels, beat.tick)
        yield ticks
        restarts = CounterMetricFamily("lens_engine_restarts", "Engines started anew.", labels=["engine"])
        for one in states:
            restarts.add_metric([str(one.index)], one.restarts)
        yield restarts
        if self._admission is not None:
            yield from self._queue(self._admission)

    def _queue(self, admission: Admission) -> Iterator[Metric]:
        yield _gauge("lens_backlog_seconds", "Predicted seconds of work that waits.", [], {(): admission.backlog_s})
        yield _gauge("lens_inside_requests", "Requests that were let in.", [], {(): admission.inside})
        yield _gauge("lens_promised_places", "Places kept for those who were refused.", [], {(): admission.promised})
        yield _gauge("lens_pace", "Predicted seconds of work done in a second.", [], {(): admission.pace})
        yield _gauge("lens_draining", "1 if the server is shutting down.", [], {(): float(admission.draining)})


def _gauge(
    name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float | None]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for of, value in values.items():
        if value is not None:
            family.add_metric(of, value)
    return family
