"""Prompts rewritten by a language model behind an OpenAI-style endpoint.

One request per prompt and no second try: what waits behind it is a picture that can be drawn without. An answer is read
up to a size and a time, whatever the server sends.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import openai
from pydantic import BaseModel, Field

from lens_core.config.endpoints import is_openai
from lens_core.errors import LensError
from lens_serve.rewriters.template import load_template, paragraph

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lens_serve.rewriters.openai.config import OpenAIRewriterConfig

__all__ = ["OpenAIRewriter"]

MAX_ANSWER_BYTES = 1 << 20
_SEEDS = 2**31
"""Some servers keep seeds in 32 bits."""

_FILTERED = {"content_filter", "content_policy_violation", "invalid_prompt"}
"""Codes by which an endpoint refuses a prompt, rather than to answer with a refusal."""

_log = logging.getLogger(__name__)


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    """As much of a chat completion as counts here; servers differ in the rest."""

    choices: list[_Choice] = Field(min_length=1)


class _FilteredError(Exception):
    """The endpoint does not take this prompt."""


class OpenAIRewriter:
    """Asks the endpoint about each prompt. It may be called from several threads at once.

    Raises:
        LensError: OpenAI needs a key and the environment has none.
        ConfigError: there is no such template.
    """

    def __init__(self, config: OpenAIRewriterConfig):
        self.config = config
        key = os.environ.get(config.api_key_env)
        if not key and is_openai(config.base_url):
            raise LensError(f"OpenAI needs an API key: export {config.api_key_env}=…")
        self._template = load_template(config.template)
        self.template = self._template.id
        # A server without keys gets a word in its place: the library insists on one.
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=config.base_url, timeout=config.timeout_s, max_retries=0
        )
        limit = "max_completion_tokens" if is_openai(config.base_url) else "max_tokens"
        self._options: dict[str, Any] = {limit: config.max_output_tokens}
        if config.temperature is not None:
            self._options["temperature"] = config.temperature
        if config.reasoning_effort is not None:
            self._options["reasoning_effort"] = config.reasoning_effort

    def rewrite(self, prompts: Sequence[str], *, seed: int = 0) -> list[str]:
        """One text per prompt, in order; a prompt that the model refuses, or answers with half a text, is unchanged.

        Raises:
            LensError: the endpoint cannot be reached, refuses the request, or does not speak the protocol.
        """
        return [self._rewritten(prompt, seed) if prompt.strip() else prompt for prompt in prompts]

    def _rewritten(self, prompt: str, seed: int) -> str:
        try:
            choice = self._ask(prompt, seed).choices[0]
        except _FilteredError:
            _log.warning("%s left a prompt as it is: the endpoint refused it", self.config.model)
            return prompt
        if choice.message.refusal or choice.finish_reason in {"length", "content_filter"}:
            _log.warning("%s left a prompt as it is: %s", self.config.model, choice.finish_reason or "refused")
            return prompt
        return paragraph(choice.message.content or "") or prompt

    def _ask(self, prompt: str, seed: int) -> _Completion:
        where = f"the rewriter at {self.config.base_url}"
        ask: Any = self._client.chat.completions.with_streaming_response.create  # its overloads know no mappings
        try:
            with ask(
                model=self.config.model,
                messages=self._template.messages(prompt),
                seed=seed % _SEEDS,
                **self._options,
            ) as response:
                body = b"".join(self._bounded(response.iter_bytes()))
            return _Completion.model_validate_json(body)
        except openai.APIStatusError as error:
            if error.code in _FILTERED:
                raise _FilteredError from error
            raise LensError(f"{where} answered {error.status_code}") from error
        except Exception as error:
            # openai, the HTTP library below it and pydantic each raise their own; what they say may quote the prompt.
            raise LensError(f"{where} gave no answer that could be used ({type(error).__name__})") from error

    def _bounded(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks, up to a size and a time: the library's time-out begins anew with every chunk."""
        end, size = time.monotonic() + self.config.timeout_s, 0
        for chunk in chunks:
            size += len(chunk)
            if size > MAX_ANSWER_BYTES or time.monotonic() > end:
                raise ValueError("an answer without end")
            yield chunk
