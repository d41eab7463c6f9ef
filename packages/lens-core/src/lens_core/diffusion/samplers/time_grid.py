"""Where the steps of a sampler lie between time 1 (noise) and 0 (image).

An even grid spends its steps badly on large images: they drown in noise later, so more steps belong near 1. A shift mu
moves each t to e^mu / (e^mu + 1/t - 1). Training leans its times by the same functions. Suffix: S steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lens_core.diffusion.samplers.config import TimeGridConfig

__all__ = ["continuous_mu", "released_mu", "shift", "shifted_times", "time_grid", "trained_mu"]

_BREAK = 4300
"""Image tokens above which the released rule changes."""


def time_grid(config: TimeGridConfig, num_tokens: int) -> Tensor:
    """The grid for an image of `num_tokens` tokens: float32 [S+1], from 1 to 0."""
    rules = {
        "none": lambda *_: 0.0,
        "released": released_mu,
        "continuous": continuous_mu,
        "trained": lambda num_tokens, steps: trained_mu(num_tokens),
    }
    mu = rules[config.shift](num_tokens, config.steps) if isinstance(config.shift, str) else config.shift
    return shifted_times(config.steps, mu)


def released_mu(num_tokens: int, steps: int) -> float:
    """How far the released checkpoints lean their grid to the noisy end (diffusers' rule for FLUX.2).

    Above 4300 tokens it is linear in the tokens; up to there, linear in the steps between two such lines. Between
    4300 and 4301 tokens it falls, at 20 steps from 2.22 to 1.18.
    """
    many = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > _BREAK:
        return many
    few = 8.73809524e-05 * num_tokens + 1.89833333
    slope = (many - few) / 190.0
    return slope * steps + (many - 200.0 * slope)


def continuous_mu(num_tokens: int, steps: int) -> float:
    """The released rule up to 4300 tokens; from there, e^mu grows with the square root of the tokens.

    The mean of n noisy values is √n times steadier than one of them, so an image of n tokens looks as noisy as one of
    m where t / (1 - t) is √(n/m) times larger: that is mu larger by ln(n/m) / 2. At 4300 tokens its slope, 1.16e-4 a
    token, lies between those of the released rule's two lines, so there is no visible bend either.
    """
    beyond = max(num_tokens / _BREAK, 1.0)
    return released_mu(min(num_tokens, _BREAK), steps) + 0.5 * math.log(beyond)


def trained_mu(num_tokens: int) -> float:
    """How far the paper leans its training times: linear in the tokens, 1.0 at 256 and 1.3 at 4096.

    Source: arXiv 2605.21573, section 2.3. A shift of mu adds mu to the logit of a time, so this is also the mean of
    its logit-normal times.
    """
    return 1.0 + 0.3 * (num_tokens - 256) / (4096 - 256)


def shift(times: Tensor, mu: float | Tensor) -> Tensor:
    """Each t moved to e^mu / (e^mu + 1/t - 1), in the dtype of `times`."""
    scale = torch.as_tensor(mu, dtype=torch.float64).exp().to(times.dtype)
    one = torch.ones((), dtype=times.dtype)  # a tensor: a number divided by a tensor rounds twice
    return scale / (scale + (one / times - 1.0))


def shifted_times(steps: int, mu: float) -> Tensor:
    """The grid 1, …, 1/steps, each t moved to e^mu / (e^mu + 1/t - 1), and a final 0: float32 [S+1].

    It is computed in float32, like the grids of diffusers' FlowMatchEulerDiscreteScheduler, to which it is bit-equal.
    """
    times_S = torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).float()
    return torch.cat([shift(times_S, mu), torch.zeros(1)])
