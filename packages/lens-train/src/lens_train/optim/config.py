"""Settings of the optimisers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import Config

__all__ = ["OptimizerConfig"]


class OptimizerConfig(Config):
    """How parameters are moved."""

    type: Literal["muon", "adamw"] = Field(
        "muon", description="'muon' moves the matrices of the blocks by Muon and everything else by AdamW."
    )
    lr: float = Field(3e-3, gt=0, description="AdamW's peak learning rate.")
    muon_lr: float = Field(1e-2, gt=0, description="Muon's peak learning rate.")
    betas: tuple[float, float] = Field((0.9, 0.99), description="AdamW's decay rates.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of matrices.")
    warmup_steps: int = Field(50, ge=0, description="Steps until the learning rate is at its peak.")
    decay_fraction: float = Field(
        0.3, ge=0, le=1, description="The last share of the budget, in which it falls to zero."
    )
    clip: float = Field(1.0, gt=0, description="Largest gradient norm; longer gradients are scaled down to it.")
