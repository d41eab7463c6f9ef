"""How long training goes on: FLOPs, steps or minutes, exactly one of them."""

from __future__ import annotations

from pydantic import Field, model_validator

from lens_core.config.base import Config

__all__ = ["Budget"]


class Budget(Config):
    """Exactly one of the three. FLOPs make arms comparable: text tokens count as what they cost."""

    flops: float | None = Field(
        None, gt=0, description="Training FLOPs of denoiser and text encoder, forward and backward."
    )
    steps: int | None = Field(None, gt=0, description="Optimiser steps.")
    minutes: float | None = Field(None, gt=0, description="Minutes of training.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        given = [name for name in ("flops", "steps", "minutes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of flops, steps and minutes, not {' and '.join(given) or 'none'}")
        return self

    @property
    def amount(self) -> tuple[float, str, float]:
        """What there is to spend, the unit that people read it in, and how much of it is one such unit."""
        if self.flops is not None:
            return self.flops, "TFLOP", 1e12
        if self.steps is not None:
            return self.steps, "steps", 1
        assert self.minutes is not None
        return self.minutes, "min", 1

    def share(self, *, flops: float, steps: int, seconds: float) -> float:
        """How much of the budget is used, from 0 to 1 and a little beyond."""
        if self.flops is not None:
            return flops / self.flops
        if self.steps is not None:
            return steps / self.steps
        assert self.minutes is not None
        return seconds / (60 * self.minutes)

    def allows(self, *, flops: float, steps: int, seconds: float, next_flops: float) -> bool:
        """Whether one more step brings the total nearer to the budget than stopping does."""
        if self.flops is not None:
            return flops + next_flops / 2 <= self.flops
        return self.share(flops=flops, steps=steps, seconds=seconds) < 1
