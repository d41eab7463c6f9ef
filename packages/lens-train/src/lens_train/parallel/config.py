"""Settings of how training is spread over devices, and of what it computes in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lens_core.config.base import Config

__all__ = ["ParallelConfig"]


class ParallelConfig(Config):
    """Where parameters lie, what the backward pass recomputes, and in what precision."""

    replicate: int | None = Field(
        None, gt=0, description="Copies of the sharded state; null is one on each node, so that little crosses nodes."
    )
    shard: int | None = Field(
        None, gt=0, description="Ranks that share one copy of the state; null is all that `replicate` leaves."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="What is computed in; weights stay float32. 'auto' is bf16 on CUDA and fp32 elsewhere."
    )
    activation_checkpointing: Literal["none", "selective", "full", "budget"] = Field(
        "none",
        description="What each block computes again in its backward pass: nothing, all but matrix products and "
        "attention, everything, or what a compiler finds to fit `activation_budget`.",
    )
    activation_budget: float | None = Field(
        None, ge=0, le=1, description="For 'budget': share of the activations that is kept, from 0 to 1."
    )
    compile: bool = Field(False, description="Compile each block, for any number of tokens.")
    float8: bool = Field(False, description="Matrix products of the blocks in float8; needs lens-train[float8].")
    timeout_s: float = Field(
        600,
        gt=0,
        description="Seconds that a rank waits for another before the run ends and names it; while data are prepared, "
        "it waits as long as that takes.",
    )

    @model_validator(mode="after")
    def _fits(self) -> ParallelConfig:
        if (self.activation_checkpointing == "budget") != (self.activation_budget is not None):
            raise ValueError("activation_budget belongs to activation_checkpointing: budget, which needs it")
        if self.activation_checkpointing == "budget" and not self.compile:
            raise ValueError("activation_checkpointing: budget is the compiler's work; set compile: true")
        if self.compile and self.activation_checkpointing == "selective":
            # torch 2.13: in a block compiled for any number of tokens, dynamo fails on a checkpoint, or silently gives
            # up where attention cannot be traced. Around a compiled block, one cannot see what to keep.
            raise ValueError("compile: true takes activation_checkpointing: none, full or budget")
        return self
