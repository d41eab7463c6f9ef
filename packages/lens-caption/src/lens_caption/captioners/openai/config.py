"""Settings of the OpenAI-style captioner."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from lens_core.config.base import ComponentConfig
from lens_core.config.endpoints import OPENAI_URL, EndpointUrl, is_openai

__all__ = ["OpenAIConfig"]


class OpenAIConfig(ComponentConfig):
    """Any vision model behind an OpenAI-style endpoint: OpenAI, Azure, vLLM, SGLang, Ollama, llama.cpp.

    The API key comes from an environment variable, never from this file.
    """

    type: Literal["openai"] = "openai"
    model: str = Field(min_length=1, description="The model's name at the endpoint, such as gpt-4.1.")
    base_url: EndpointUrl = Field(
        OPENAI_URL, description="The endpoint, up to and with /v1; of Azure, the resource's address will do."
    )
    api: Literal["auto", "responses", "chat"] = Field(
        "auto",
        description="Which API to speak; auto takes responses for OpenAI itself and chat for every other server.",
    )
    api_key_env: str = Field("OPENAI_API_KEY", description="Name of the environment variable that holds the API key.")
    api_version: str | None = Field(
        None,
        min_length=1,
        description="Asks Azure's older API, by deployments; null asks its newer one.",
    )
    dialect: Literal["auto", "openai", "azure"] = Field(
        "auto", exclude=True, description="Which header has the key, and the like; auto goes by the endpoint's host."
    )
    prompt: str = Field("dense-1", min_length=1, description="The recipe: what is asked about each image.")
    recipes: str | None = Field(None, min_length=1, description="Folder of your own recipes, looked at first.")
    instruction: str | None = Field(None, min_length=1, description="Words of your own, instead of a recipe.")
    max_side: int = Field(768, ge=32, le=4096, description="Images are scaled down to this before they are sent.")
    jpeg_quality: int = Field(85, ge=30, le=100, description="Quality of the JPEG that is sent.")
    detail: Literal["low", "high", "auto", "original"] | None = Field(
        None, description="The API's image detail; null leaves it out."
    )
    max_output_tokens: int = Field(700, gt=0, le=32768, description="Longer answers count as truncated.")
    temperature: float | None = Field(None, ge=0, le=2, description="null leaves it to the server.")
    reasoning_effort: str | None = Field(None, min_length=1, description="null takes what the profile says.")
    # No caption depends on these. They are kept out of the stage's key, so that a run goes on when they change.
    timeout_s: float = Field(120, gt=0, le=3600, exclude=True, description="Seconds to wait for one answer.")
    max_attempts: int = Field(6, ge=1, le=20, exclude=True, description="Tries per image in one run.")
    max_wait_s: float = Field(60, ge=0, le=3600, exclude=True, description="Longest pause between two tries.")
    concurrency: int = Field(8, ge=1, le=4096, exclude=True, description="Requests in flight.")
    profiles: str | None = Field(
        None, min_length=1, description="Folder of your own model profiles; null takes LENS_CAPTION_PROFILES, if set."
    )

    @model_validator(mode="after")
    def _azures_older_api(self) -> OpenAIConfig:
        if self.is_azure and "/deployments/" in self.base_url and self.api_version is None:
            raise ValueError("a deployment's address wants an api_version; without one, end base_url in /openai/v1")
        if self.asks_a_deployment and self.api == "responses":
            raise ValueError("Azure's deployments know chat only; for responses leave api_version out")
        return self

    @property
    def is_azure(self) -> bool:
        """Whether the endpoint is Azure's, which wants the key in a header of its own."""
        host = urlsplit(self.base_url).hostname or ""
        return self.dialect == "azure" or (
            self.dialect == "auto" and host.endswith((".azure.com", ".azure.us", ".azure.cn"))
        )

    @property
    def asks_a_deployment(self) -> bool:
        """Whether the endpoint is Azure's older API, where each deployment has an address."""
        return self.is_azure and self.api_version is not None and not self.base_url.endswith("/v1")

    @property
    def answers_url(self) -> str:
        """Where answers are to be had; Azure shows its users the address of the resource only."""
        if self.asks_a_deployment and "/deployments/" not in self.base_url:
            return f"{self.files_url}/deployments/{self.model}"
        return self.base_url if self.asks_a_deployment else self.files_url

    @property
    def files_url(self) -> str:
        """Where files and batches are."""
        if self.asks_a_deployment:
            root = self.base_url.partition("/deployments/")[0]
            return root if root.endswith("/openai") else f"{root}/openai"
        if self.is_azure and urlsplit(self.base_url).path in {"", "/openai"}:
            return f"{self.base_url.removesuffix('/openai')}/openai/v1"
        return self.base_url

    @property
    def is_openai(self) -> bool:
        """Whether the endpoint is OpenAI's own."""
        return is_openai(self.base_url)

    @property
    def speaks(self) -> Literal["responses", "chat"]:
        """The API in use."""
        if self.api != "auto":
            return self.api
        return "responses" if self.is_openai else "chat"
