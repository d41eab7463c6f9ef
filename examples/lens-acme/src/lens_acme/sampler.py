"""Euler's method on a cosine time grid."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lens_acme.configs import CosineConfig
    from lens_core.contracts.diffusion import Walk


class Cosine:
    """Built by Lens as `Cosine(config)`. It knows neither pixels nor prompts."""

    def __init__(self, config: CosineConfig):
        self.config = config

    def times(self, num_tokens: int) -> Tensor:
        """From 1 (noise) to 0 (image). This grid is the same for pictures of all sizes."""
        angle = torch.linspace(0, math.pi, self.config.steps + 1, dtype=torch.float64)
        times = (torch.cos(angle) + 1) / 2
        times[-1] = 0  # exactly, whatever the cosine rounds to
        return times.float()

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return x + (t_next - t) * velocity

    def walk(self, x: Tensor, times: Tensor) -> Walk:
        for t, t_next in itertools.pairwise(times):
            velocity = yield x, t  # ask for the velocity here; whoever follows sends it
            x = self.step(x, velocity, t, t_next)
        return x
