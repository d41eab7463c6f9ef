"""Euler's method along the flow, on a shifted time grid.

Time runs from 1 (noise) to 0 (image); x_t = (1 - t)·x0 + t·noise, and the velocity is noise - x0.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_core.diffusion.samplers.flow_euler.config import FlowEulerConfig

__all__ = ["FlowEuler", "released_mu", "shifted_times"]


def released_mu(num_tokens: int, steps: int) -> float:
    """How far the released checkpoints lean their time grid to the noisy end (diffusers' rule for FLUX.2).

    Above 4300 tokens it is linear in the tokens; below, linear in the steps between two such lines. It is not
    continuous at 4300.
    """
    many = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > 4300:
        return many
    few = 8.73809524e-05 * num_tokens + 1.89833333
    slope = (many - few) / 190.0
    return slope * steps + many - 200.0 * slope


def shifted_times(steps: int, mu: float) -> Tensor:
    """The grid 1, …, 1/steps, each t moved to e^mu / (e^mu + 1/t - 1), and a final 0: float32 [steps+1]."""
    times = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64)
    scale = torch.tensor(mu, dtype=torch.float64).exp()
    times = scale / (scale + 1.0 / times - 1.0)
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)]).float()


class FlowEuler:
    """One velocity call a step, first order."""

    def __init__(self, config: FlowEulerConfig):
        self.config = config

    def times(self, num_tokens: int) -> Tensor:
        """The grid for an image of `num_tokens` tokens: float32 [steps+1], from 1 to 0."""
        shift = self.config.shift
        mu = 0.0 if shift == "none" else released_mu(num_tokens, self.config.steps) if shift == "released" else shift
        return shifted_times(self.config.steps, float(mu))

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """From `t` to `t_next`; times broadcast against `x`, so that each token may have its own."""
        return x + (t_next - t) * velocity

    def sample(self, velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor) -> Tensor:
        """Follow `velocity(x, t)` along the grid."""
        for t, t_next in itertools.pairwise(times):
            x = self.step(x, velocity(x, t), t, t_next)
        return x
