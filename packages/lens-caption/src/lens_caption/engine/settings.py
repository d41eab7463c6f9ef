"""Settings of the engine: how captions are bought. None of them changes a caption."""

from __future__ import annotations

from decimal import Decimal  # noqa: TC003 (pydantic reads it)
from typing import Any, Literal

from pydantic import Field, model_validator

from lens_core.config.base import Config

__all__ = ["BatchSettings", "BudgetSettings", "EngineSettings", "LaneName"]

LaneName = Literal["sync", "flex", "batch", "files"]


class BudgetSettings(Config):
    """What a stage may spend at most, over all its runs; the first bound that would be crossed stops it."""

    usd: Decimal | None = Field(None, gt=0, description="US dollars.")
    tokens: int | None = Field(None, gt=0, description="Tokens, input and output together.")
    images: int | None = Field(None, gt=0, description="Answers that are billed.")

    @model_validator(mode="before")
    @classmethod
    def _exact(cls, data: Any) -> Any:
        """0.1 dollars in a file are ten cents, not the binary fraction nearest to them."""
        if isinstance(data, dict) and isinstance(data.get("usd"), float):
            return {**data, "usd": str(data["usd"])}
        return data

    @model_validator(mode="after")
    def _says_something(self) -> BudgetSettings:
        if self.usd is None and self.tokens is None and self.images is None:
            raise ValueError("a budget names usd, tokens or images")
        return self


class BatchSettings(Config):
    """How the batch lane splits and waits."""

    max_requests: int | None = Field(None, gt=0, le=50_000, description="Per batch; null takes the profile's limit.")
    max_bytes: int | None = Field(None, gt=0, le=200_000_000, description="Per batch; null takes the profile's limit.")
    enqueued_tokens: int | None = Field(
        None, gt=0, description="Input tokens that may wait in batches at once; null takes the profile's limit."
    )
    poll_s: float = Field(60, gt=0, le=3600, description="Seconds between two looks at the batches.")
    rounds: int = Field(4, ge=1, le=20, description="How often an image that a batch did not answer is sent again.")


class EngineSettings(Config):
    """How captions are bought."""

    lane: LaneName = Field(
        "sync",
        description="sync answers at once, flex when there is room, batch within a day; files writes requests for "
        "vllm run-batch.",
    )
    budget: BudgetSettings | None = Field(None, description="What may be spent; null: no bound.")
    rpm: int | None = Field(None, gt=0, description="Requests per minute; null takes what the server's headers say.")
    tpm: int | None = Field(None, gt=0, description="Tokens per minute; null takes what the server's headers say.")
    workers: int = Field(0, ge=0, le=256, description="Processes that prepare images; 0 takes threads, mostly faster.")
    batch: BatchSettings = BatchSettings()
