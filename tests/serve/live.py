"""A real server on a free port of this machine: uvicorn in a thread, engines in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2
import openai
import uvicorn

from lens_core.registry import load_registry
from lens_serve.api.app import create_app
from lens_serve.config import ServeSettings
from lens_serve.engine.messages import Draw
from lens_serve.listening import listening
from lens_serve.server import Server
from serve.models import GUIDANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lens_serve.engine.engines import EngineState

T = TypeVar("T")

WAIT_S = 120.0
"""For what happens within a second on an idle machine."""

BOUNDS = {"max_side": 64, "max_pixels": 4096, "max_steps": 8}

SLOW_BOUNDS = {"max_side": 192, "max_pixels": 192 * 192, "max_steps": 1000}
ENDLESS = {"size": "192x192", "lens": {"steps": 1000}}
"""What takes far longer than any test, on the fastest of machines, where `SLOW_BOUNDS` allow it: to be given up."""


def settings_for(folder: Path, *, engine: dict[str, Any] | None = None, **changes: Any) -> ServeSettings:
    """Settings of a server of the tiny model in `folder`, small enough for tests.

    However busy this machine is, nobody is refused, and no engine is taken for one that hangs, unless a test wants it.
    """
    plain = {
        "models": [{"name": "tiny", "folder": str(folder)}],
        "listen": {"port": 0, "metrics_port": None},
        "bounds": BOUNDS,
        "engine": {"device": "cpu", "threads": 1, "watchdog_s": 60.0, **(engine or {})},
        "admission": {"max_backlog_s": 1e6, "max_wait_factor": 1e6},
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
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, question: Callable[[], T]) -> T:
        """The answer of the server's own thread: whatever that changes is not to be looked at from another."""

        async def answer() -> T:
            return question()

        return asyncio.run_coroutine_threadsafe(answer(), self.loop).result(WAIT_S)

    @property
    def states(self) -> list[EngineState]:
        """Of its engines."""
        return self.ask(lambda: self.server.engines.states)

    @property
    def pid(self) -> int | None:
        """Of the first engine."""
        return self.states[0].pid

    @property
    def jobs(self) -> int:
        """Pictures that the engines have not finished."""
        return sum(state.jobs for state in self.states)

    @property
    def ticks(self) -> int:
        """Steps that the engines have taken, several pictures at once perhaps."""
        return sum(state.heartbeat.tick for state in self.states if state.heartbeat)

    @property
    def running(self) -> int:
        """Pictures between their first step and their last, as the engines last said."""
        return sum(state.heartbeat.running for state in self.states if state.heartbeat)

    @property
    def rests(self) -> bool:
        """Whether nothing is left of any request."""
        return not (self.jobs or self.server.admission.inside)

    def steps_for(self, seconds: float, *, side: int) -> int:
        """How many steps of a picture of that size take so many seconds on this machine, as the server predicts."""
        about = {"id": "x", "prompt": "", "seed": 0, "guidance": GUIDANCE, "arrived": 0.0}
        whole = Draw(model="tiny", height=side, width=side, steps=1000, **about)
        return min(1000, math.ceil(1000 * seconds / self.ask(lambda: self.server.engines.predict_s(whole))))

    def count(self, name: str, **labels: str) -> float:
        """What the metrics say."""
        return self.ask(lambda: self.server.metrics.registry.get_sample_value(name, labels)) or 0.0

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
    listener = listening("127.0.0.1", 0, key="listen.port", advice="try again")
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    port = listener.getsockname()[1]
    web = uvicorn.Server(
        uvicorn.Config(create_app(server), log_config=None, timeout_graceful_shutdown=10, timeout_keep_alive=30)
    )
    loops: queue.Queue[asyncio.AbstractEventLoop] = queue.Queue()

    async def serve() -> None:
        loops.put(asyncio.get_running_loop())
        await web.serve(sockets=[listener])

    # The loop of `lens serve`. uvloop, which uvicorn would take where it is installed, hears of the end of processes by
    # a signal whose handler other loops of this process may take away.
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        loop = loops.get(timeout=WAIT_S)
        wait_until(lambda: server.engines.is_ready or not thread.is_alive(), "the engine")
        assert thread.is_alive(), "the server ended by itself"
        yield Live(server, port, loop)
    finally:
        web.should_exit = True
        thread.join(WAIT_S)
        listener.close()
        assert not thread.is_alive()
