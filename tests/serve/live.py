"""A real server on a free port of this machine: uvicorn in a thread, engines in processes of their own."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import uvicorn

from lens_core.registry import load_registry
from lens_serve.api.app import create_app
from lens_serve.config import ServeSettings
from lens_serve.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WAIT_S = 120.0
"""For what happens within a second on an idle machine."""

BOUNDS = {"max_side": 64, "max_pixels": 4096, "max_steps": 8}


def settings_for(folder: Path, **changes: Any) -> ServeSettings:
    """Settings of a server of the tiny model in `folder`, small enough for tests."""
    plain = {
        "models": [{"name": "tiny", "folder": str(folder)}],
        "listen": {"port": 0, "metrics_port": None},
        "bounds": BOUNDS,
        "engine": {"device": "cpu", "threads": 1},
    }
    return ServeSettings.model_validate({**plain, **changes})


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of a condition."""
    end = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.01)
    return value


@dataclass(frozen=True)
class Live:
    """A server that answers."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def jobs(self) -> int:
        """Pictures that the engines have not finished."""
        return sum(state.jobs for state in self.server.engines.states)

    @property
    def ticks(self) -> int:
        """Steps that the engines have taken, several pictures at once perhaps."""
        return sum(state.heartbeat.tick for state in self.server.engines.states if state.heartbeat)

    @property
    def running(self) -> int:
        """Pictures between their first step and their last, as the engines last said."""
        return sum(state.heartbeat.running for state in self.server.engines.states if state.heartbeat)

    def count(self, name: str, **labels: str) -> float:
        """What the metrics say."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0

    def http(self, **options: Any) -> httpx2.Client:
        """A plain client."""
        return httpx2.Client(base_url=self.url, timeout=WAIT_S, **options)

    def openai(self, **options: Any) -> openai.OpenAI:
        """OpenAI's client, as anybody would use it."""
        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "unused", "timeout": WAIT_S, **options})

    def openai_async(self, **options: Any) -> openai.AsyncOpenAI:
        """Likewise, for asyncio."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", **{"api_key": "unused", "timeout": WAIT_S, **options})


@contextlib.contextmanager
def live_server(settings: ServeSettings, *, send_buffer: int | None = None) -> Iterator[Live]:
    """Serve until the end of the block; then neither thread, process nor socket is left.

    Args:
        settings: of the server.
        send_buffer: bytes that the kernel keeps for a client who does not read; None: as it likes.
    """
    server = Server.build(settings, load_registry())
    listener = socket.create_server(("127.0.0.1", 0))
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    port = listener.getsockname()[1]
    # The loop of `lens serve`. uvloop, which uvicorn would take where it is installed, hears of the end of processes by
    # a signal whose handler other loops of this process may take away.
    config = uvicorn.Config(create_app(server), log_config=None, loop="asyncio", timeout_graceful_shutdown=10)
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.engines.is_ready or not thread.is_alive(), "the engine")
        assert thread.is_alive(), "the server ended by itself"
        yield Live(server, port)
    finally:
        web.should_exit = True
        thread.join(WAIT_S)
        listener.close()
        assert not thread.is_alive()
