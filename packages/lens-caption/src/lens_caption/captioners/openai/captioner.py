"""Captions from any vision model behind an OpenAI-style endpoint.

The official SDK speaks the protocol; its own retries are off, because it repeats what is hopeless (an empty account)
and gives up on what is not (a long Retry-After). What is tried again, and how long to wait, is decided here.
"""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai

from lens_caption.captioners.openai.outcomes import outcome_of
from lens_caption.captioners.openai.requests import build_request, prompt_hash
from lens_core.contracts import CaptionOutcome, ImageItem
from lens_core.errors import ImageError, LensError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_caption.captioners.openai.config import OpenAIConfig

__all__ = ["OpenAICaptioner", "retry_after"]

_FIRST_PAUSE_S = 0.5


class OpenAICaptioner:
    """Sends images, several at a time, and reads the answers.

    Raises:
        LensError: the endpoint needs a key and the environment has none.
    """

    deterministic = False

    def __init__(self, config: OpenAIConfig):
        self.config = config
        key = os.environ.get(config.api_key_env)
        if not key and config.is_openai:
            raise LensError(f"OpenAI needs an API key: export {config.api_key_env}=…")
        self._client = openai.OpenAI(
            # Servers of one's own mostly want no key, but the SDK insists on one.
            api_key=key or "none",
            base_url=config.base_url,
            max_retries=0,
            timeout=config.timeout_s,
        )
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="openai-captioner")
        self._provenance: dict[str, str | int | float] = {
            "captioner": "openai",
            "asked_model": config.model,
            "api": config.speaks,
            "prompt": "own" if config.instruction else config.prompt,
            "prompt_sha256": prompt_hash(config),
            "max_side": config.max_side,
            "jpeg_quality": config.jpeg_quality,
        }

    def caption(self, images: Sequence[ImageItem]) -> list[CaptionOutcome]:
        """One outcome per image, in order.

        Raises:
            LensError: the endpoint refuses everything: the key, the model, or the account.
        """
        return list(self._pool.map(self._one, images))

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _one(self, item: ImageItem) -> CaptionOutcome:
        try:
            request = build_request(self.config, item.data)
        except ImageError as error:
            return CaptionOutcome(key=item.key, status="bad-image", detail=str(error), provenance=self._provenance)
        outcome = self._failed(item, "no attempt was made")
        for attempt in range(1, self.config.max_attempts + 1):
            pause = min(self.config.max_wait_s, _FIRST_PAUSE_S * 2**attempt) * random.random()
            try:
                answer = self._send(request)
                outcome = outcome_of(item.key, answer, self._provenance | {"attempts": attempt})
                if outcome.status != "transport":
                    return outcome
            except openai.APIStatusError as error:
                if not _worth_another_try(error):
                    return self._refused(item, error)
                outcome = self._failed(item, f"HTTP {error.status_code}: {_message(error)}")
                asked = retry_after(error.response.headers)
                pause = min(self.config.max_wait_s, asked) if asked is not None else pause
            except openai.APIError as error:
                outcome = self._failed(item, _message(error))
            if attempt < self.config.max_attempts:
                time.sleep(pause)
        return outcome

    def _send(self, request: dict[str, Any]) -> Any:
        try:
            if self.config.speaks == "responses":
                return self._client.responses.create(**request)
            return self._client.chat.completions.create(**request)
        except ValueError as error:  # the SDK lets a body that is half a JSON document through as json's own error
            raise openai.APIError(f"the answer is not whole: {error}", request=None, body=None) from error  # type: ignore[arg-type]

    def _refused(self, item: ImageItem, error: openai.APIStatusError) -> CaptionOutcome:
        """A refusal of this image only is an outcome; one of everything stops the run."""
        if error.status_code in {400, 413, 415, 422}:
            return CaptionOutcome(key=item.key, status="bad-image", detail=_message(error), provenance=self._provenance)
        raise LensError(
            f"{self.config.base_url} refuses the model {self.config.model!r}: "
            f"HTTP {error.status_code}: {_message(error)}"
        ) from error

    def _failed(self, item: ImageItem, detail: str) -> CaptionOutcome:
        return CaptionOutcome(key=item.key, status="transport", detail=detail, provenance=self._provenance)


def retry_after(headers: Any) -> float | None:
    """Seconds that the server asks to wait, from `retry-after-ms` or `Retry-After`; None if it does not say."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue  # absent, or a date: the usual back-off does
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _worth_another_try(error: openai.APIStatusError) -> bool:
    if error.status_code == 429:
        return error.code != "insufficient_quota"
    return error.status_code in {408, 409} or error.status_code >= 500


def _message(error: openai.APIError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return " ".join(str(body.get("message") or error.message or type(error).__name__).split())[:300]
