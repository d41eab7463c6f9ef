"""Settings of the Euler sampler."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["FlowEulerConfig"]


class FlowEulerConfig(ComponentConfig):
    """Euler steps from noise to image."""

    type: Literal["flow-euler"] = "flow-euler"
    steps: int = Field(20, gt=0, le=1000, description="How many steps.")
    shift: Literal["released", "none"] | float = Field(
        "none",
        description="Where the steps lie: 'none' is even, 'released' leans to the noisy end by the released rule, "
        "a number by e^that.",
    )
