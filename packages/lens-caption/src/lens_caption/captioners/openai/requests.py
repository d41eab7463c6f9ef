"""The one request that is sent for an image; previews and runs send the same."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

from lens_caption.prompts import load_prompt
from lens_core.images import decode, to_jpeg

if TYPE_CHECKING:
    from lens_caption.captioners.openai.config import OpenAIConfig

__all__ = ["build_request", "instruction_of", "prompt_hash"]


def instruction_of(config: OpenAIConfig) -> str:
    """The words that go with each image."""
    return config.instruction or load_prompt(config.prompt)


def prompt_hash(config: OpenAIConfig) -> str:
    """First 16 hex digits of the sha256 of the words."""
    return hashlib.sha256(instruction_of(config).encode()).hexdigest()[:16]


def build_request(config: OpenAIConfig, data: bytes) -> dict[str, Any]:
    """Arguments of the SDK's `create` for an image.

    Raises:
        ImageError: the image cannot be decoded.
    """
    jpeg = to_jpeg(decode(data), max_side=config.max_side, quality=config.jpeg_quality)
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    text = instruction_of(config)
    optional: dict[str, Any] = {} if config.temperature is None else {"temperature": config.temperature}
    detail = {} if config.detail is None else {"detail": config.detail}
    if config.speaks == "responses":
        # Here an image part must name its detail.
        content: list[dict[str, Any]] = [
            {"type": "input_text", "text": text},
            {"type": "input_image", "image_url": url, "detail": config.detail or "auto"},
        ]
        message = {"role": "user", "content": content}
        return {"model": config.model, "input": [message], "max_output_tokens": config.max_output_tokens, **optional}
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url, **detail}}]
    # OpenAI's newer models refuse max_tokens; most other servers know only that.
    limit = "max_completion_tokens" if config.is_openai else "max_tokens"
    messages = [{"role": "user", "content": content}]
    return {"model": config.model, "messages": messages, limit: config.max_output_tokens, **optional}
