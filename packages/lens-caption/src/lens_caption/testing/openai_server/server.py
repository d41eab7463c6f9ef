"""The server as an object: its parts, and the thread that they run in."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING

from aiohttp import web

from lens_caption.testing.openai_server.app import make_app
from lens_caption.testing.openai_server.batches import BatchSettings, BatchStore
from lens_caption.testing.openai_server.clock import Clock
from lens_caption.testing.openai_server.faults import Faults
from lens_caption.testing.openai_server.files import FileStore
from lens_caption.testing.openai_server.ledger import Ledger
from lens_caption.testing.openai_server.limits import Limits
from lens_caption.testing.openai_server.model import Model, ModelSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lens_caption.testing.openai_server.azure import Azure
    from lens_caption.testing.openai_server.model import Look

__all__ = ["FakeServer"]

_BACKLOG = 1024
_TICK_S = 0.02
_STEPS_PER_TICK = 16
_DECODERS = 2


class FakeServer:
    """The server, as a context manager; it listens on this machine only. The package's page says more.

    Args:
        port: 0 takes a free one.
        api_key: if given, requests must carry it.
        faults: what successive requests meet, from `FAULTS`; or a whole schedule.
        delay_s: pause before an answer.
        jitter: by which share of it the pause varies.
        rpm: requests per minute and model.
        tpm: tokens per minute and model.
        limits: instead of `rpm` and `tpm`, with all their settings.
        clock: "real", "manual", or a speed; batches and files live by it.
        batches: how batches behave.
        ledger_path: where to keep the ledger beyond the server's life.
        words: about how many words a caption has; 0 gives the plain one.
        like: models of one's own, and which known one each resembles.
        prices: dollars per million input and output tokens of models of one's own.
        look: for benchmarks, "draft" decodes JPEGs small, and "header" decodes nothing.
        prefix_cache: answer from a cache whose key is the beginning of the image only, as a buggy server did.
        max_data_url_chars: longer images are refused by the responses API.
        quota: dollars after which every request is refused.
        allow: parameters that are accepted and ignored, such as vLLM's own.
        text_only: take requests without an image.
        retired: models that are gone.
        azure: speak as Azure does.
        slow_s: pause of the fault `slow`.
        drip_s: how long an answer of the fault `slow-drip` takes.
        hang_s: how long the fault `hang` keeps a connection open.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        api_key: str | None = None,
        faults: Iterable[str] | Faults = (),
        delay_s: float = 0.0,
        jitter: float = 0.0,
        rpm: float | None = None,
        tpm: float | None = None,
        limits: Limits | None = None,
        clock: str | float | Clock = "real",
        batches: BatchSettings | None = None,
        ledger_path: str | Path | None = None,
        words: int = 0,
        like: Mapping[str, str] | None = None,
        prices: Mapping[str, tuple[Decimal | str, Decimal | str]] | None = None,
        look: Look = "pixels",
        prefix_cache: bool = False,
        max_data_url_chars: int | None = None,
        quota: Decimal | float | None = None,
        allow: Iterable[str] = (),
        text_only: bool = False,
        retired: Iterable[str] = (),
        azure: Azure | None = None,
        slow_s: float = 1.0,
        drip_s: float = 2.0,
        hang_s: float = 600.0,
    ):
        self.api_key = api_key
        self.azure = azure
        self.delay_s, self.jitter = delay_s, jitter
        self.slow_s, self.drip_s, self.hang_s = slow_s, drip_s, hang_s
        self.quota = None if quota is None else Decimal(str(quota))
        self.requests = 0
        self.in_flight = 0
        self.faults = faults if isinstance(faults, Faults) else Faults(faults)
        self.limits = limits or Limits(rpm, tpm)
        self.clock = Clock.of(clock)
        settings = ModelSettings(
            words=words,
            like=dict(like or {}),
            prices=dict(prices or {}),
            look=look,
            prefix_cache=prefix_cache,
            max_data_url_chars=max_data_url_chars,
            allow=frozenset(allow),
            text_only=text_only,
            retired=frozenset({"no-such-model", *retired}),
            azure=azure,
        )
        self.ledger = Ledger(ledger_path)
        self.files = FileStore(self.clock)
        self.model = Model(settings, self.ledger, self.clock, self.files.read)
        self.batches = BatchStore(batches or BatchSettings(), self.clock, self.files, self.model, self.faults)
        self.executor = ThreadPoolExecutor(_DECODERS, thread_name_prefix="fake-openai")
        # Bound at once, so that the address is known; nobody is heard before the server is entered.
        self._socket = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        self._port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="fake-openai", daemon=True)
        self._failure: BaseException | None = None
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """What to set as `base_url`."""
        return f"{self.control_url}/openai/v1" if self.azure else f"{self.control_url}/v1"

    @property
    def control_url(self) -> str:
        """Where `/_ledger`, `/_clock`, `/_faults` and `/_state` are."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FakeServer:
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *details: object) -> None:
        if self._loop is not None and self._end is not None:
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self.executor.shutdown(cancel_futures=True)
        self.ledger.close()
        self.files.close()

    def pause_before(self, digest: str) -> float:
        """Seconds before an answer about an image; the same every time."""
        if not self.jitter:
            return self.delay_s
        return self.delay_s * (1 + self.jitter * (2 * self.faults.share("delay", digest) - 1))

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:
            self._failure = failure  # for whoever waits in `__enter__`
            raise
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(make_app(self), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.SockSite(runner, self._socket, backlog=_BACKLOG)
        await site.start()
        ticker = asyncio.create_task(self._tick())
        self._started.set()
        await self._end.wait()
        ticker.cancel()
        await runner.cleanup()

    async def _tick(self) -> None:
        """Let batches go on as time passes; a manual clock moves them itself."""
        while not self.clock.manual:
            await asyncio.sleep(_TICK_S)
            if self.batches.busy():
                await asyncio.to_thread(self.batches.advance, _STEPS_PER_TICK)
