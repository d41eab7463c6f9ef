"""Run a server until it is asked to stop; then let what runs finish."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from typing import TYPE_CHECKING

import uvicorn

from lens_core.registry import load_registry
from lens_serve.api.app import create_app
from lens_serve.api.auth import check_listen
from lens_serve.connection import Connection, raise_file_limit
from lens_serve.listening import Http, listening
from lens_serve.server import Server
from lens_serve.watch import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_core.registry import Registry
    from lens_serve.config import ServeSettings

__all__ = ["Serving", "serve_settings"]

_LOOK_S = 0.1


class Serving:
    """A server from its start to its end.

    Args:
        settings: of all.
        registry: where components come from.
        say: told one line at a time what a person at the terminal should know.

    Raises:
        LensError: settings that cannot be served, or a port that is taken.
    """

    def __init__(self, settings: ServeSettings, registry: Registry, *, say: Callable[[str], None]):
        check_listen(settings.listen)
        logs.configure(settings.watch)
        raise_file_limit()
        self._settings = settings
        self._say = say
        self._socket = listening(
            settings.listen.host, settings.listen.port, key="listen.port", advice="choose another with --port"
        )
        try:
            self._server = Server.build(settings, registry)
            self._server.metrics.bind(settings.listen)
        except BaseException:
            self._socket.close()
            raise

    def run(self, *, until: Callable[[], bool], told: Callable[[int], None] | None = None) -> int:
        """Serve until `until` says so, then drain; returns how many images were handed out.

        Args:
            until: asked ten times a second.
            told: told the number of images so far, as often.
        """
        return asyncio.run(self._run(until, told or (lambda images: None)))

    async def _run(self, until: Callable[[], bool], told: Callable[[int], None]) -> int:
        server, listen = self._server, self._settings.listen
        http = Http(
            uvicorn.Config(
                create_app(server),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=5,
                # Clients drop idle connections earlier (httpx: after 5 s); otherwise some would meet one that closes.
                timeout_keep_alive=30,
                http=Connection,
                ws="none",
            )
        )
        answering = asyncio.create_task(http.serve(sockets=[self._socket]))
        loading = asyncio.create_task(server.engines.ready())
        try:
            host, port = self._socket.getsockname()[:2]
            self._say(f"http://{'[' + host + ']' if ':' in host else host}:{port} - loading {self._names()}")
            said = False
            while not until() and not answering.done():
                if loading.done() and not said:
                    loading.result()  # a model that no engine can load ends the server with what the engine said
                    said = True
                    self._say("ready")
                told(server.metrics.images)
                await asyncio.sleep(_LOOK_S)
            server.admission.draining = True
            end = time.monotonic() + listen.drain_s
            if server.admission.inside:
                self._say(
                    f"stopping; {server.admission.inside} requests may finish, for {listen.drain_s:.0f} s at most"
                )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(listen.drain_s):
                        while server.admission.inside:
                            await asyncio.sleep(_LOOK_S)
            # What was drawn may be on its way still: it has the rest of the time, in uvicorn's whole seconds.
            http.config.timeout_graceful_shutdown = max(1, math.ceil(end - time.monotonic()))
        finally:
            loading.cancel()
            http.should_exit = True
            await answering
        return server.metrics.images

    def _names(self) -> str:
        return ", ".join(model.name for model in self._settings.models)


def serve_settings(settings: ServeSettings, *, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; a second one does not wait for what runs."""
    serving = Serving(settings, load_registry(), say=say)
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    with contextlib.suppress(KeyboardInterrupt):
        served = serving.run(until=lambda: asked)
        say(f"stopped; {served} images were served")
