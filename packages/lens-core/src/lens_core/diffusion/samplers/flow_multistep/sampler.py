"""A second-order method that remembers one step and calls the velocity once a step.

Time runs from 1 (noise) to 0 (image); x_t = (1 - t)·x0 + t·noise, and the velocity is noise - x0. At every time the
velocity says what the image would be, D = x - t·velocity, and that estimate changes slowly. So a step draws a line in
time through the estimates here and a step ago, and solves dx/dt = (x - D(t)) / t exactly along that line (the idea of
DPM-Solver++, arXiv 2211.01095, with a line in t instead of log(t / (1 - t)), which has no ends):

    x' = x + (t' - t)·velocity + dD/dt·(t'·ln(t/t') - (t - t'))

The first step has nothing to remember and the last one takes the estimate as it is: both are Euler's. Extrapolating
the last one too would gain little, and at few steps it does harm, since grids end in a long step (0.32 to 0 at 1024²
in 20 steps). Suffixes: N tokens of all images, C channels, S steps.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens_core.diffusion.samplers.time_grid import time_grid

if TYPE_CHECKING:
    from lens_core.contracts.diffusion import Walk
    from lens_core.diffusion.samplers.flow_multistep.config import FlowMultistepConfig

__all__ = ["FlowMultistep"]


class FlowMultistep:
    """One velocity call a step, second order. It holds no state: what a step remembers is handed to it."""

    def __init__(self, config: FlowMultistepConfig):
        self.config = config

    def times(self, num_tokens: int) -> Tensor:
        """The grid for an image of `num_tokens` tokens: float32 [S+1], from 1 to 0."""
        return time_grid(self.config, num_tokens)

    def step(
        self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor, before: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """From `t` to `t_next`, in the dtype of `x`; times broadcast against `x`: each token may have its own.

        Args:
            x: where the flow is.
            velocity: at `x` and `t`.
            t: the time there.
            t_next: the time to go to.
            before: `clean(x, velocity, t)` of the step before and its time; without it the step is Euler's.
        """
        moved = x + (t_next - t) * velocity.to(x.dtype)
        if before is None:
            return moved
        clean_before, t_before = before
        span, gap = t - t_next, t_before - t
        bend = t_next * torch.log1p(span / t_next.clamp(min=torch.finfo(t_next.dtype).tiny)) - span
        # The last step is Euler's; a time that repeats has no slope.
        weight = torch.where((t_next > 0) & (gap > 0), bend / gap, 0.0)
        return moved + weight * (clean_before - self.clean(x, velocity, t))

    def clean(self, x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """The image that the velocity promises, x - t·velocity."""
        return x - t * velocity.to(x.dtype)

    def walk(self, x: Tensor, times: Tensor) -> Walk:
        """The way along a grid [S+1], or along one for each token, [S+1, N, 1] for `x` [N, C]."""
        before = None
        for t, t_next in itertools.pairwise(times):
            v = yield x, t
            remember = (self.clean(x, v, t), t)
            x = self.step(x, v, t, t_next, before)
            before = remember
        return x
