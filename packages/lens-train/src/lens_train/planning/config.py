"""Settings of the batch plan."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lens_core.config.base import Config

__all__ = ["BatchConfig", "SizesConfig"]

Count = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(gt=0)]
Base = Annotated[int, Field(ge=64, le=4096)]


class BatchConfig(Config):
    """What a step is trained on: packs, each of which is what one rank works on at a time."""

    plan: Literal["ragged", "buckets"] = Field(
        "ragged",
        description="'ragged' mixes sizes in packs of equal cost, without padding; 'buckets' makes packs of one size.",
    )
    samples: Count | None = Field(None, description="Samples per pack, at most.")
    tokens: Count | None = Field(None, description="Image and text tokens per pack, in the mean.")
    flops: float | None = Field(None, gt=0, description="Training FLOPs per pack, in the mean.")
    buckets: dict[Base, Count] | None = Field(
        None,
        min_length=1,
        description="For 'buckets': samples per pack by the side of the square that a size has the area of. "
        "The paper has {512: 24, 768: 10, 1024: 6}.",
    )
    packs_per_step: Count = Field(1, description="Packs per optimiser step, over all ranks and accumulation.")
    fixed_size: bool = Field(
        False, description="Whether packs are padded to one size, so that a compiled model is compiled once."
    )

    @model_validator(mode="after")
    def _one_measure(self) -> BatchConfig:
        names = ("samples", "tokens", "flops", "buckets")
        given = [name for name in names if getattr(self, name) is not None]
        if self.plan == "buckets" and given != ["buckets"]:
            raise ValueError("the plan 'buckets' takes its sizes from the option buckets, and from no other")
        if self.plan == "buckets" and self.fixed_size:
            raise ValueError("buckets have a size each, so fixed_size is for the plan 'ragged'")
        if self.plan == "ragged" and (len(given) != 1 or "buckets" in given):
            raise ValueError(f"give exactly one of samples, tokens and flops, not {' and '.join(given) or 'none'}")
        return self


class SizesConfig(Config):
    """Images of several sizes: each is trained at the ratio closest to its own, on a base drawn for it."""

    bases: dict[Base, Weight] = Field(
        min_length=1,
        description="Weights by base, the side of the square of about a size's area: {512: 1, 1024: 2}. "
        "An image is not scaled up to a base where it reaches a smaller one.",
    )
