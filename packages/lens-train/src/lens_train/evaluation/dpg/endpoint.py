"""A vision model behind an OpenAI-style chat endpoint, asked whether something is so in a picture."""

from __future__ import annotations

import base64
import io
import logging
import os
import re
from typing import TYPE_CHECKING, Any

import openai
from PIL import Image

from lens_core.config.endpoints import is_openai
from lens_core.errors import LensError

if TYPE_CHECKING:
    import numpy as np

    from lens_train.evaluation.dpg.config import DpgEvaluatorConfig

__all__ = ["VisionEndpoint", "data_url", "yes_or_no"]

_FILTERED = {"content_filter", "content_policy_violation"}
_INSTRUCTION = "Look at the picture and answer the question about it with one word: yes or no."

_log = logging.getLogger(__name__)


class VisionEndpoint:
    """Asks one question a request; it may be called from several threads at once.

    Raises:
        LensError: OpenAI needs a key and the environment has none.
    """

    def __init__(self, config: DpgEvaluatorConfig):
        self._config = config
        key = os.environ.get(config.api_key_env)
        if not key and is_openai(config.base_url):
            raise LensError(f"OpenAI needs an API key: export {config.api_key_env}=…")
        # A server without keys gets a word in its place: the library insists on one.
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=config.base_url, timeout=config.timeout_s, max_retries=config.retries
        )
        limit = "max_completion_tokens" if is_openai(config.base_url) else "max_tokens"
        self._options: dict[str, Any] = {limit: config.max_output_tokens}

    def says_yes(self, picture: str, question: str) -> bool:
        """Whether the answer is yes; a refusal, or an answer that is neither yes nor no, counts as no.

        Args:
            picture: from `data_url`.
            question: in words.

        Raises:
            LensError: the endpoint cannot be reached or refuses the request, also after the retries.
        """
        content = [
            {"type": "text", "text": f"{_INSTRUCTION}\n\n{question}"},
            {"type": "image_url", "image_url": {"url": picture}},
        ]
        create: Any = self._client.chat.completions.create  # its overloads know no mappings
        where = f"the vision model at {self._config.base_url}"
        try:
            reply = create(model=self._config.model, messages=[{"role": "user", "content": content}], **self._options)
            said = reply.choices[0].message.content or ""
        except openai.APIStatusError as error:
            if error.code in _FILTERED:
                _log.warning("the endpoint does not look at a picture, which counts as no: %s", question)
                return False
            raise LensError(f"{where} answered {error.status_code}: {_one_line(error.message)}") from error
        except openai.APIError as error:
            raise LensError(f"{where} gave no answer: {_one_line(error.message)}") from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise LensError(f"{where} does not speak the protocol ({type(error).__name__})") from error
        answer = yes_or_no(said)
        if answer is None:
            _log.warning("neither yes nor no, which counts as no: %r to: %s", said[:80], question)
        return answer is True


def yes_or_no(said: str) -> bool | None:
    """What an answer begins with, after any thoughts; None if it is neither."""
    word = re.match(r"\W*(yes|no)\b", re.sub(r"<think>.*?</think>", "", said, flags=re.DOTALL), re.IGNORECASE)
    return None if word is None else word[1].lower() == "yes"


def data_url(image_HW3: np.ndarray) -> str:
    """The picture as PNG, in a URL."""
    stream = io.BytesIO()
    Image.fromarray(image_HW3).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _one_line(message: str) -> str:
    return " ".join(message.split())[:200]
