"""All parts of the process that answers HTTP, made once; `start` and `stop` with the application's life."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lens_serve.admission.admission import Admission
from lens_serve.admission.keys import Keyring
from lens_serve.api.errors import ApiError
from lens_serve.api.idempotency import Idempotency
from lens_serve.api.jobs import Jobs
from lens_serve.api.shelf import Shelf
from lens_serve.engine.engines import Engines
from lens_serve.images.encoders import Encoders
from lens_serve.images.store import Store
from lens_serve.rewriting import Rewriting
from lens_serve.safety.gate import Gate
from lens_serve.watch.metrics import Metrics
from lens_serve.watch.traces import Traces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_core.registry import Registry
    from lens_serve.admission.keys import Key
    from lens_serve.config import ServeSettings

__all__ = ["Server"]

DECODERS = 2
"""Clients' pictures that are decoded at once; each has a process of its own."""

JOBS_BYTES = 512 << 20
REPEATABLE_BYTES = 256 << 20
"""Of what is kept for a day: jobs, and what was asked for with an `Idempotency-Key`."""

EDITS_OF_A_KEY = 4
"""Whose pictures are read, or wait for it."""

UPLOADS_OF_A_KEY = 8
"""On their way here; each may take as much memory as `bounds.max_upload_bytes`."""


@dataclass
class Server:
    """The parts.

    Args:
        settings: of all.
        registry: what components were built from.
        engines: who draws.
        keyring: API keys; None: nobody needs one.
        admission: who may ask for how much.
        rewriting: of prompts.
        gate: what may not be drawn.
        encoders: from pixels to files.
        store: where files are kept; None: nowhere.
        jobs: images to fetch later.
        idempotency: what was asked for lately, in case it is asked again.
        metrics: what is counted.
        traces: where time went.
        decoding: of clients' pictures.
        streams: by key, answers on their way: event streams, and images that were drawn for an earlier request.
        edits: whose pictures are being read, by key.
        uploads: whose bodies come, by key.
    """

    settings: ServeSettings
    registry: Registry
    engines: Engines
    keyring: Keyring | None
    admission: Admission
    rewriting: Rewriting
    gate: Gate
    encoders: Encoders
    store: Store | None
    jobs: Jobs
    idempotency: Idempotency
    metrics: Metrics
    traces: Traces
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DECODERS))
    streams: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)

    @classmethod
    def build(cls, settings: ServeSettings, registry: Registry) -> Server:
        """Make all parts; nothing runs yet.

        Raises:
            LensError: a part cannot be made from its settings.
        """
        engines = Engines(settings)
        admission = Admission(
            settings.admission,
            predict=engines.predict_s,
            backlog_s=engines.backlog_s,
            replicas=lambda: engines.ready_count,
        )
        return cls(
            settings=settings,
            registry=registry,
            engines=engines,
            keyring=None if settings.listen.keys is None else Keyring.load(settings.listen.keys),
            admission=admission,
            rewriting=Rewriting(settings.rewrite, registry),
            gate=Gate(settings.safety, registry),
            encoders=Encoders(settings.output),
            store=Store.of(settings.output, settings.listen),
            jobs=Jobs(Shelf(most_bytes=JOBS_BYTES)),
            idempotency=Idempotency(Shelf(most_bytes=REPEATABLE_BYTES)),
            metrics=Metrics(engines, admission),
            traces=Traces(settings.watch.traces),
        )

    async def start(self) -> None:
        """Start the engines, which become ready in their own time, and answer for the metrics.

        Raises:
            ConfigError: the port of the metrics is taken.
        """
        await self.metrics.start(self.settings.listen, self.keyring)
        await self.engines.start()

    async def stop(self) -> None:
        """End all that was started; no process, thread or socket is left."""
        await self.jobs.stop()
        await self.idempotency.stop()
        await self.engines.stop()
        await self.rewriting.close()
        await self.metrics.stop()
        self.encoders.close()
        self.traces.close()

    @contextmanager
    def streaming(self, key: Key) -> Iterator[None]:
        """An event stream of a key, or images that it has sent to it again, while they are on their way.

        Raises:
            ApiError: 429 if the key has too many already.
        """
        with _one_of(self.streams, key, self.settings.bounds.max_streams, "streams and repeated answers"):
            yield

    @contextmanager
    def receiving(self, key: Key) -> Iterator[None]:
        """An edit of a key, until all of its body has come.

        Raises:
            ApiError: 429 if the key has too many already.
        """
        with _one_of(self.uploads, key, UPLOADS_OF_A_KEY, "uploads"):
            yield

    @contextmanager
    def preparing(self, key: Key) -> Iterator[None]:
        """An edit of a key whose pictures are being read: they are large until they are fitted.

        Raises:
            ApiError: 429 if the key has too many already.
        """
        with _one_of(self.edits, key, EDITS_OF_A_KEY, "edits being read"):
            yield


@contextmanager
def _one_of(counter: Counter[str], key: Key, limit: int, what: str) -> Iterator[None]:
    if counter[key.id] >= limit:
        raise ApiError(429, f"At most {limit} {what} at once.", code="concurrency", headers={"retry-after": "5"})
    counter[key.id] += 1
    try:
        yield
    finally:
        counter[key.id] -= 1
