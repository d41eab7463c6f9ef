"""Which time a sample is trained at: a lot in (0, 1) becomes a time by a distribution's quantile function, then leans.

The lean is the samplers' own (`lens_core.diffusion.samplers.time_grid`): even lots with a sampler's shift give that
sampler's grid, so that training and drawing mean the same by it. Suffix: G samples.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lens_core.diffusion.samplers.time_grid import shift, trained_mu
from lens_train.objective.config import LogitNormalTimes, ModeTimes
from lens_train.planning.permutation import key_of, lots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_train.objective.config import TimesConfig

__all__ = ["time_lots", "times_of"]


def time_lots(turns: Sequence[tuple[int, str]], seed: int) -> Tensor:
    """A uniform number in (0, 1) of each sample's turn (epoch, image key), float64 [G]."""
    lots_G = np.empty(len(turns))
    for epoch in {epoch for epoch, _ in turns}:
        places = [place for place, turn in enumerate(turns) if turn[0] == epoch]
        words = np.array([int(turns[place][1][:16], 16) for place in places], dtype=np.uint64)
        lots_G[places] = lots(words, key_of("time", seed, epoch))
    return torch.from_numpy(lots_G)


def times_of(config: TimesConfig, lots_G: Tensor, lengths: Sequence[int]) -> Tensor:
    """The times [G] in (0, 1), float32.

    Args:
        config: the distribution.
        lots_G: a uniform number of each sample, float64.
        lengths: image tokens of each sample, which the lean may depend on.
    """
    times_G = _quantiles(config, lots_G)
    if config.shift == "none":
        return times_G.float()
    mus = [trained_mu(n) for n in lengths] if config.shift == "trained" else [config.shift] * len(lengths)
    return shift(times_G, torch.tensor(mus, dtype=torch.float64)).float()


def _quantiles(config: TimesConfig, lots_G: Tensor) -> Tensor:
    if isinstance(config, LogitNormalTimes):
        # A standard normal number is the normal quantile of a uniform one.
        return torch.sigmoid(config.mean + config.std * torch.special.ndtri(lots_G))
    if isinstance(config, ModeTimes):
        bump_G = (math.pi / 2 * lots_G).cos().square() - 1 + lots_G
        return 1 - lots_G - config.scale * bump_G
    return lots_G
