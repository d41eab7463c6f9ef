"""Euler's method along the flow.

Time runs from 1 (noise) to 0 (image); x_t = (1 - t)·x0 + t·noise, and the velocity is noise - x0.
Suffixes: N tokens of all images, C channels, S steps.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from lens_core.diffusion.samplers.time_grid import time_grid

if TYPE_CHECKING:
    from torch import Tensor

    from lens_core.contracts.diffusion import Walk
    from lens_core.diffusion.samplers.flow_euler.config import FlowEulerConfig

__all__ = ["FlowEuler"]


class FlowEuler:
    """One velocity call a step, first order."""

    def __init__(self, config: FlowEulerConfig):
        self.config = config

    def times(self, num_tokens: int) -> Tensor:
        """The grid for an image of `num_tokens` tokens: float32 [S+1], from 1 to 0."""
        return time_grid(self.config, num_tokens)

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """From `t` to `t_next`, in the dtype of `x`; times broadcast against `x`: each token may have its own."""
        return x + (t_next - t) * velocity.to(x.dtype)

    def walk(self, x: Tensor, times: Tensor) -> Walk:
        """The way along a grid [S+1], or along one for each token, [S+1, N, 1] for `x` [N, C]."""
        for t, t_next in itertools.pairwise(times):
            velocity = yield x, t
            x = self.step(x, velocity, t, t_next)
        return x
