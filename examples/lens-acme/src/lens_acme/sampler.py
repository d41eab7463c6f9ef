"""Euler's method on a cosine time grid."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lens_acme.configs import CosineConfig


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

    def sample(self, velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor) -> Tensor:
        for t, t_next in itertools.pairwise(times):
            x = self.step(x, velocity(x, t), t, t_next)
        return x
