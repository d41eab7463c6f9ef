"""Replicas on a Ray cluster: each is a whole server with one engine, and Ray's proxy passes requests to one of them.

Ray chooses machines, starts a replica anew when its process or its machine dies, and sends it requests again when its
engine is ready. Within a replica everything is as without Ray; nothing is shared between them but the settings.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

# Ray reads these when it is imported, which in a replica it was.
if "ray" not in sys.modules:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported home
    if not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys():
        # Ports of a cluster of our own are open to the network; only its processes know what they ask for.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

import ray  # noqa: TID253 (this module is imported where somebody asks for Ray)
from ray import serve  # noqa: TID253

from lens_core.errors import ConfigError, LensError
from lens_core.registry import load_registry
from lens_serve.api.app import create_app
from lens_serve.listening import is_loopback
from lens_serve.server import Server
from lens_serve.watch import logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from fastapi import FastAPI

    from lens_serve.config import ServeSettings

__all__ = ["Replica", "serve_on_ray", "settings_of_replica"]

_NAME = "lens"
_QUIET = {"log_level": "WARNING", "enable_access_log": False}
_LOGS = "/tmp/ray/session_latest/logs/worker-*.err"
_LOOK_S = 2.0
"""Between two looks of Ray at whether a replica lives."""

_MAX_ONGOING = 1000
"""Requests that Ray passes to a replica at once: how many are too many is for its admission to say."""


@serve.ingress()
class Replica:
    """A server with one engine, as Ray runs it.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: ServeSettings):
        logs.configure(settings.watch)
        self._server = Server.build(settings, load_registry())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; it has begun when its engine is ready, so that Ray sends nothing before."""
        app = create_app(self._server)
        begun = app.router.lifespan_context

        @asynccontextmanager
        async def ready(app: FastAPI) -> AsyncIterator[Any]:
            async with begun(app) as state:
                await self._server.engines.ready()
                yield state

        app.router.lifespan_context = ready
        return app


def settings_of_replica(settings: ServeSettings) -> ServeSettings:
    """What a replica is told: it has one engine, and no port of its own."""
    return settings.model_copy(
        update={
            "engine": settings.engine.model_copy(update={"replicas": 1}),
            "listen": settings.listen.model_copy(update={"metrics_port": None}),
        }
    )


def serve_on_ray(settings: ServeSettings, *, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    The replicas run on the cluster that the variable RAY_ADDRESS names, or else on one that is made on this machine.

    Args:
        settings: of all replicas; `engine.replicas` is their number.
        say: told one line at a time what a person at the terminal should know.

    Raises:
        LensError: there is no such cluster, or no replica can run on it.
    """
    listen = settings.listen
    if not is_loopback(listen.host):
        raise ConfigError(
            f"with --ray the server listens on this machine only, and {listen.host!r} is open to others: "
            "put a reverse proxy before it",
            key="listen.host",
        )
    with _joined(), _until_told():
        options = {"host": listen.host, "port": listen.port}
        try:
            serve.start(proxy_location="HeadOnly", http_options=options, logging_config=_QUIET)
            say(f"http://{listen.host}:{listen.port} - {settings.engine.replicas} replicas on Ray are loading")
            serve.run(_application(settings), name=_NAME, logging_config=_QUIET)
            say("ready")
            threading.Event().wait()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise LensError(f"no replica can run: {reason} More is in {_LOGS} on their nodes.") from error
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _application(settings: ServeSettings) -> serve.Application:
    engine = settings.engine
    gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    deployment = serve.deployment(
        name=_NAME,
        num_replicas=engine.replicas,
        ray_actor_options={
            "num_cpus": engine.threads or 1,
            "num_gpus": 1 if engine.device == "cuda" or (engine.device == "auto" and gpus) else 0,
        },
        max_ongoing_requests=_MAX_ONGOING,
        graceful_shutdown_timeout_s=settings.listen.drain_s,
        health_check_period_s=_LOOK_S,
        max_constructor_retry_count=1,  # what cannot be loaded once cannot be loaded
    )(Replica)
    return deployment.bind(settings_of_replica(settings))


@contextmanager
def _joined() -> Iterator[None]:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    address = os.environ.get("RAY_ADDRESS")
    where: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise LensError(f"no Ray cluster can be joined {address or 'on this machine'}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _until_told() -> Iterator[None]:
    """What SIGINT or SIGTERM ends, while replicas still load too; Ray would end the process at once."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
