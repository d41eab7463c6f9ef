"""Settings of the optimisers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lens_core.config.base import Config

__all__ = ["OptimizerConfig"]

_Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """How parameters are moved."""

    type: Literal["muon", "adamw", "adamw-8bit"] = Field(
        "muon",
        description="'muon' moves the matrices of the blocks by Muon, and adapters and everything else by AdamW; "
        "'adamw-8bit' keeps AdamW's state in 8 bits and needs lens-train[eight-bit].",
    )
    lr: float = Field(1.5e-3, gt=0, description="AdamW's peak learning rate.")
    muon_lr: float = Field(5e-3, gt=0, description="Muon's peak learning rate.")
    betas: tuple[_Beta, _Beta] = Field((0.9, 0.99), description="AdamW's decay rates.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of matrices.")
    schedule: Literal["wsd", "constant", "linear", "cosine"] = Field(
        "wsd",
        description="How the learning rate runs after its warm-up: a plateau and a fall over the last "
        "`decay_fraction`, no fall, a straight fall over the whole budget, or half a cosine.",
    )
    warmup_steps: int = Field(50, ge=0, description="Steps until the learning rate is at its peak.")
    decay_fraction: float = Field(
        0.3, ge=0, le=1, description="For 'wsd': the last share of the budget, in which the rate falls to zero."
    )
    clip: float = Field(1.0, gt=0, description="Largest gradient norm; longer gradients are scaled down to it.")
    max_skipped: int = Field(
        10,
        ge=1,
        description="A step whose loss or gradient is not finite is skipped: it moves nothing. So many of them in a "
        "row end the run; with 1 the first does.",
    )

    @model_validator(mode="after")
    def _used(self) -> OptimizerConfig:
        if "decay_fraction" in self.model_fields_set and self.schedule != "wsd":
            raise ValueError(f"decay_fraction belongs to schedule: wsd, not to {self.schedule}")
        return self
