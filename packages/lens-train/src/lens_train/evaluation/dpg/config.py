"""Settings of the evaluator with dense prompts and questions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig
from lens_core.config.endpoints import EndpointUrl

__all__ = ["DpgEvaluatorConfig"]


class DpgEvaluatorConfig(ComponentConfig):
    """DPG-Bench's prompts and questions (arXiv 2403.05135), answered by a vision model behind an OpenAI-style endpoint.

    The API key comes from an environment variable, never from this file.
    """

    type: Literal["dpg"] = "dpg"
    prompts: str = Field(min_length=1, description="DPG-Bench's dpg_bench.csv, or a CSV or JSON Lines file like it.")
    base_url: EndpointUrl = Field(description="Who answers: the URL up to and with /v1.")
    model: str = Field(min_length=1, description="The vision model's name at the endpoint.")
    api_key_env: str = Field("OPENAI_API_KEY", description="Name of the environment variable that holds the API key.")
    samples: int = Field(4, gt=0, le=64, description="Pictures of each prompt.")
    size: int | None = Field(
        None, gt=0, le=4096, description="Height and width of the pictures in pixels; null takes the model's."
    )
    concurrency: int = Field(8, gt=0, le=256, description="Questions about a picture that are asked at once.")
    max_output_tokens: int = Field(1024, gt=0, le=65536, description="Of an answer, reasoning included.")
    retries: int = Field(6, ge=0, le=20, description="How often a request that failed is sent again.")
    timeout_s: float = Field(120.0, gt=0, le=3600, description="Seconds to wait for one answer.")
