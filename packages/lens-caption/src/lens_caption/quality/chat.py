"""One question about one image to an OpenAI-style chat endpoint, for the judge.

It needs no SDK. What is tried again, and how long to wait, is decided here; nothing follows a redirect, because it
would carry the key along.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lens_core.errors import LensError

if TYPE_CHECKING:
    from lens_caption.prompts import Recipe
    from lens_caption.quality.config import JudgeConfig

__all__ = ["Answer", "AskError", "ChatJudge"]

_MAX_ANSWER_BYTES = 8 << 20
_FIRST_PAUSE_S = 0.5
_HOPELESS = {401, 403, 404}


class AskError(Exception):
    """One question got no usable answer; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back, and what it cost."""

    text: str
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None


class ChatJudge:
    """Asks a vision model by the chat completions API, with structured output.

    Raises:
        LensError: OpenAI is asked without a key.
    """

    def __init__(self, config: JudgeConfig, recipe: Recipe):
        self._config = config
        self._recipe = recipe
        self._is_openai = "//api.openai.com/" in config.base_url
        key = os.environ.get(config.api_key_env)
        if not key and self._is_openai:
            raise LensError(f"OpenAI needs an API key: export {config.api_key_env}=…")
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key or 'none'}"}
        self._opener = urllib.request.build_opener(_NoRedirect)

    def request(self, instruction: str, jpeg: bytes) -> dict[str, Any]:
        """The body that is sent."""
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        content = [{"type": "text", "text": instruction}, {"type": "image_url", "image_url": {"url": url}}]
        system = [{"role": "system", "content": self._recipe.system}] if self._recipe.system else []
        # OpenAI's newer models refuse max_tokens; most other servers know only that.
        limit = "max_completion_tokens" if self._is_openai else "max_tokens"
        shape = self._recipe.answer_format()
        inner = {key: value for key, value in (shape or {}).items() if key != "type"}
        return {
            "model": self._config.model,
            "messages": [*system, {"role": "user", "content": content}],
            limit: self._config.max_output_tokens,
            **({"response_format": {"type": "json_schema", "json_schema": inner}} if shape else {}),
        }

    def __call__(self, instruction: str, jpeg: bytes) -> Answer:
        """Ask, and again if the server is busy.

        Raises:
            AskError: there is no usable answer to this question.
            LensError: the endpoint refuses everything.
        """
        body = json.dumps(self.request(instruction, jpeg)).encode()
        reason = ""
        for attempt in range(1, self._config.max_attempts + 1):
            pause = min(self._config.max_wait_s, _FIRST_PAUSE_S * 2**attempt) * random.random()
            try:
                return _read(self._post(body))
            except urllib.error.HTTPError as error:
                reason, code = _told(error)
                if error.code in _HOPELESS or code == "insufficient_quota":
                    raise LensError(
                        f"{self._config.base_url} refuses the judge {self._config.model!r}: {reason}"
                    ) from error
                if error.code < 500 and error.code not in {408, 409, 429}:
                    raise AskError(reason) from error
                pause = min(self._config.max_wait_s, _asked_pause(error) or pause)
            except (OSError, http.client.HTTPException, _HalfAnswer) as error:
                reason = f"{type(error).__name__}: {error}"
            if attempt < self._config.max_attempts:
                time.sleep(pause)
        raise AskError(reason)

    def _post(self, body: bytes) -> Any:
        request = urllib.request.Request(
            f"{self._config.base_url}/chat/completions", body, self._headers, method="POST"
        )
        with self._opener.open(request, timeout=self._config.timeout_s) as response:
            data = response.read(_MAX_ANSWER_BYTES)
        try:
            return json.loads(data)
        except ValueError as error:
            raise _HalfAnswer("the server answered with something else than JSON") from error


class _HalfAnswer(Exception):
    """Not the JSON of a chat completion; worth another try."""


def _read(value: Any) -> Answer:
    try:
        choice = value["choices"][0]
        text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        usage = value.get("usage") or {}
        counts = {name: int(usage.get(key) or 0) for name, key in _COUNTS.items()}
        model = str(value.get("model") or "")
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise _HalfAnswer(f"the answer is no chat completion ({type(error).__name__})") from error
    if refusal:
        raise AskError(f"it refused: {str(refusal)[:100]}")
    if choice.get("finish_reason") in {"length", "content_filter"}:
        raise AskError(f"the answer was cut off ({choice['finish_reason']})")
    if not isinstance(text, str) or not text.strip():
        raise AskError("the answer is empty")
    return Answer(text=text, model=model, **counts)


_COUNTS = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}


def _told(error: urllib.error.HTTPError) -> tuple[str, str]:
    """One line about an error response, and its code."""
    message, code = "", ""
    try:
        told = json.loads(error.read(65536)).get("error")
        message, code = str(told.get("message") or ""), str(told.get("code") or "")
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        pass  # the status alone must do
    return " ".join(f"HTTP {error.code}: {message or error.reason}".split())[:300], code


def _asked_pause(error: urllib.error.HTTPError) -> float | None:
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(error.headers[name]) * scale
        except (TypeError, ValueError):
            continue  # absent, or a date
        if 0 <= seconds < float("inf"):
            return seconds
    return None
