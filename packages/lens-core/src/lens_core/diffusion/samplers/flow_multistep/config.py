"""Settings of the multistep sampler."""

from __future__ import annotations

from typing import Literal

from lens_core.diffusion.samplers.config import TimeGridConfig

__all__ = ["FlowMultistepConfig"]


class FlowMultistepConfig(TimeGridConfig):
    """Second-order steps from noise to image: the price of Euler's, and closer to the flow at the same steps."""

    type: Literal["flow-multistep"] = "flow-multistep"
