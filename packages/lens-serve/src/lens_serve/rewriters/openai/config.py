"""Settings of the rewriter that asks an OpenAI-style endpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig
from lens_core.config.endpoints import OPENAI_URL, EndpointUrl

__all__ = ["OpenAIRewriterConfig"]


class OpenAIRewriterConfig(ComponentConfig):
    """Any language model behind an OpenAI-style chat endpoint: OpenAI, vLLM, SGLang, Ollama, llama.cpp.

    The API key comes from an environment variable, never from this file.
    """

    type: Literal["openai"] = "openai"
    model: str = Field(min_length=1, description="The model's name at the endpoint, such as gpt-5.2.")
    base_url: EndpointUrl = Field(OPENAI_URL, description="The endpoint, up to and with /v1.")
    api_key_env: str = Field("OPENAI_API_KEY", description="Name of the environment variable that holds the API key.")
    template: str = Field("dense-1", min_length=1, description="What the model is told: a built-in name, or a file.")
    max_output_tokens: int = Field(1024, gt=0, le=8192, description="A longer answer counts for nothing.")
    temperature: float | None = Field(None, ge=0, le=2, description="null leaves it to the server.")
    reasoning_effort: str | None = Field(None, min_length=1, description="null leaves it to the server.")
    timeout_s: float = Field(20.0, gt=0, le=600, description="Seconds to wait for one answer.")
