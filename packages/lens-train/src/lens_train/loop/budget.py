"""How long training goes on: FLOPs, steps, samples, tokens or minutes, exactly one of them."""

from __future__ import annotations

from pydantic import Field, model_validator

from lens_core.config.base import Config

__all__ = ["Budget"]

_UNITS = {"flops": ("TFLOP", 1e12), "samples": ("images", 1), "tokens": ("million tokens", 1e6), "minutes": ("min", 1)}


class Budget(Config):
    """Exactly one of the five. FLOPs make arms comparable: text tokens count as what they cost."""

    flops: float | None = Field(
        None, gt=0, description="Training FLOPs of denoiser and text encoder, forward and backward."
    )
    steps: int | None = Field(None, gt=0, description="Optimiser steps.")
    samples: int | None = Field(None, gt=0, description="Images, counted as often as they are seen.")
    tokens: int | None = Field(None, gt=0, description="Tokens of images and captions together.")
    minutes: float | None = Field(None, gt=0, description="Minutes of training.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of flops, steps, samples, tokens and minutes, not {' and '.join(given) or 'none'}"
            )
        return self

    @property
    def kind(self) -> str:
        """Which of the five is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def amount(self) -> tuple[float, str, float]:
        """What there is to spend, the unit that people read it in, and how much of it is one such unit."""
        return (getattr(self, self.kind), *_UNITS.get(self.kind, (self.kind, 1)))

    def share(self, *, flops: float, steps: int, samples: int, tokens: int, seconds: float) -> float:
        """How much of the budget is used, from 0 to 1 and a little beyond."""
        used = {"flops": flops, "steps": steps, "samples": samples, "tokens": tokens, "minutes": seconds / 60}
        return used[self.kind] / self.amount[0]

    def allows(self, *, flops: float, steps: int, samples: int, tokens: int, seconds: float, next_flops: float) -> bool:
        """Whether one more step is within the budget; of FLOPs, whether it brings the total nearer than stopping."""
        if self.flops is not None:
            return flops + next_flops / 2 <= self.flops
        return self.share(flops=flops, steps=steps, samples=samples, tokens=tokens, seconds=seconds) < 1
