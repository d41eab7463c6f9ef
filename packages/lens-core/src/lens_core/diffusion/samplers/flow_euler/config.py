"""Settings of the Euler sampler."""

from __future__ import annotations

from typing import Literal

from lens_core.diffusion.samplers.config import TimeGridConfig

__all__ = ["FlowEulerConfig"]


class FlowEulerConfig(TimeGridConfig):
    """Euler steps from noise to image, as the released checkpoints take them.

    Lens takes 20 steps with shift 'released', Lens-Base 50, and Lens-Turbo 4, at guidance 1: its four times are those
    of the released rule at 4 steps, so it needs no option of its own.
    """

    type: Literal["flow-euler"] = "flow-euler"
