"""Captions from any vision model behind an OpenAI-style endpoint.

It makes requests and reads answers; the engine sends them. Asked directly (by a preview, or a pilot), it sends the
same requests itself, with the same table of what follows from what.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp  # noqa: F401 (so that a missing library shows when the captioner is looked up)
import simplejpeg  # noqa: F401 (likewise)

from lens_caption.captioners.openai.outcomes import outcome_of
from lens_caption.captioners.openai.picture import PREPARATION
from lens_caption.captioners.openai.requests import RequestPlan
from lens_caption.engine.book import with_facts
from lens_caption.engine.client import Client, LostError, NotSentError
from lens_caption.engine.lanes.sync import understand
from lens_caption.engine.policy import POLICIES, pause_before_next, retry_after
from lens_caption.engine.request import BadImage, Endpoint, PreparedRequest
from lens_caption.profiles import load_profile
from lens_core.contracts import CaptionOutcome, ImageItem
from lens_core.errors import LensError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lens_caption.captioners.openai.config import OpenAIConfig
    from lens_caption.engine.settings import LaneName
    from lens_caption.profiles import Profile, Usage

__all__ = ["OpenAICaptioner"]

T = TypeVar("T")

_AZURE_KEEPS_S = 14 * 24 * 3600
"""Azure takes 10,000 files that say when they end, and 500 of others; this is the shortest life that it gives."""


class OpenAICaptioner:
    """Sends images, several at a time, and reads the answers.

    Raises:
        LensError: the endpoint needs a key and the environment has none.
        ConfigError: there is no such recipe.
    """

    deterministic = False

    def __init__(self, config: OpenAIConfig):
        self.config = config
        key = os.environ.get(config.api_key_env)
        if not key and (config.is_openai or config.is_azure):
            raise LensError(
                f"{'OpenAI' if config.is_openai else 'Azure'} needs an API key: export {config.api_key_env}=…"
            )
        auth = {"api-key": key} if config.is_azure else {"Authorization": f"Bearer {key}"}
        self._plans = {"sync": RequestPlan.of(config)}
        self._recipe = self._plans["sync"].recipe
        self.endpoint = Endpoint(
            url=config.answers_url,
            files_url=config.files_url,
            model=config.model,
            headers={name: value for name, value in auth.items() if key},  # type: ignore[misc]
            query={"api-version": config.api_version} if config.api_version else {},
            lines_root="" if config.asks_a_deployment else "/v1",
            keep_files_s=_AZURE_KEEPS_S if config.is_azure and not config.asks_a_deployment else None,
            timeout_s=config.timeout_s,
            concurrency=config.concurrency,
            max_attempts=config.max_attempts,
            max_wait_s=config.max_wait_s,
        )
        self.layers = tuple(layer.name for layer in self._recipe.layers)
        self._runner: asyncio.Runner | None = asyncio.Runner()
        self._client: Client | None = None
        self._provenance: dict[str, str | int | float] = {
            "captioner": "openai",
            "asked_model": config.model,
            "api": config.speaks,
            "prompt": self._recipe.id if not config.instruction else "own",
            "prompt_sha256": self._recipe.hash,
            "prep": PREPARATION,
            "max_side": config.max_side,
            "jpeg_quality": config.jpeg_quality,
        }

    @property
    def profile(self) -> Profile:
        """What is known of the model; raises `ConfigError` if nothing is."""
        folder = Path(self.config.profiles) if self.config.profiles else None
        return load_profile(self.config.model, base_url=self.config.base_url, folder=folder)

    def preparer(self, lane: LaneName) -> RequestPlan:
        """Makes requests in any process."""
        if lane not in self._plans:
            self._plans[lane] = RequestPlan.of(self.config, lane)
        return self._plans[lane]

    def request_for(self, item: ImageItem, lane: LaneName = "sync") -> PreparedRequest:
        """The request of one image; raises `ImageError`."""
        return self.preparer(lane).prepare(item.key, item.data)

    def read(self, key: str, answer: Any) -> tuple[CaptionOutcome, Usage | None]:
        """What an answer's JSON says, and what it was billed for."""
        return outcome_of(key, answer, self._provenance, self._recipe)

    def caption(self, images: Sequence[ImageItem]) -> list[CaptionOutcome]:
        """One outcome per image, in order.

        Raises:
            LensError: the endpoint refuses everything: the key, the model, or the account.
        """
        if self._runner is None:
            raise LensError("the captioner is closed")
        return _apart(self._runner.run, self._caption(images))

    def close(self) -> None:
        """Close the connections."""
        if self._runner is not None:
            if self._client is not None:
                _apart(self._runner.run, self._client.__aexit__())
            _apart(self._runner.close)
            self._runner = self._client = None

    async def _caption(self, images: Sequence[ImageItem]) -> list[CaptionOutcome]:
        if self._client is None:
            self._client = await Client(self.endpoint).__aenter__()
        room = asyncio.Semaphore(self.endpoint.concurrency)

        async def one(item: ImageItem) -> CaptionOutcome:
            async with room:
                made = await asyncio.to_thread(self._plans["sync"], item.key, item.data)
                if isinstance(made, BadImage):
                    return CaptionOutcome(
                        key=item.key, status="bad-image", detail=made.detail, provenance=self._provenance
                    )
                return await self._obtain(made)

        tasks = [asyncio.ensure_future(one(item)) for item in images]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _obtain(self, request: PreparedRequest) -> CaptionOutcome:
        assert self._client is not None
        outcome = CaptionOutcome(key=request.key, status="transport", detail="no attempt was made")
        for attempt in range(1, self.endpoint.max_attempts + 1):
            pause = None
            try:
                reply = await self._client.post(request.path, request.body)
            except (NotSentError, LostError) as error:
                outcome = CaptionOutcome(key=request.key, status="transport", detail=str(error))
            else:
                fate, outcome, _ = understand(self, request.key, reply.status, reply.json)
                if POLICIES[fate].stops:
                    raise LensError(self.endpoint.refusal(outcome.detail))
                if not POLICIES[fate].again:
                    return self._told(outcome, request, attempt)
                pause = retry_after(reply.headers)
            if attempt < self.endpoint.max_attempts:
                await asyncio.sleep(pause_before_next(attempt, pause, self.endpoint.max_wait_s))
        return self._told(outcome, request, self.endpoint.max_attempts)

    def _told(self, outcome: CaptionOutcome, request: PreparedRequest, attempts: int) -> CaptionOutcome:
        facts: dict[str, str | int | float] = {
            "lane": "standard",
            "base_url": self.endpoint.url,
            "request_sha256": request.hash[:16],
            "attempts": attempts,
        }
        return with_facts(outcome, {**self._provenance, **outcome.provenance, **facts})


def _apart(call: Callable[..., T], *arguments: Any) -> T:
    """What it returns; where an event loop runs already, as in a notebook, a thread does it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call(*arguments)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call, *arguments).result()
