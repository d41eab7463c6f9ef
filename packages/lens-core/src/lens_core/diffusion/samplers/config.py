"""What samplers have in common: where their steps lie."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["TimeGridConfig"]

# Beyond e^±6 a grid of a thousand steps would repeat times in float32.
_Shift = Annotated[float, Field(ge=-6, le=6)]


class TimeGridConfig(ComponentConfig):
    """A number of steps from noise to image, and how they lean."""

    steps: int = Field(20, gt=0, le=1000, description="How many steps.")
    shift: Literal["released", "continuous", "trained", "none"] | _Shift = Field(
        "none",
        description="Where the steps lie: 'none' is even, 'released' leans to the noisy end by the released rule, "
        "'continuous' does so without that rule's jump above 4300 tokens, 'trained' as far as the paper's training "
        "times lean, a number by e^that.",
    )
