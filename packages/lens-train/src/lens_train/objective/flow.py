"""Rectified flow: learn the velocity from noise to image (arXiv 2209.03003).

x_t = (1 - t)·x0 + t·noise, t = 1 at pure noise; the target is v = noise - x0. All randomness is keyed by (seed, epoch,
image key): a sample's target does not depend on its neighbours, its rank, or what was drawn before.

Suffixes: N image tokens of a batch, C channels, G samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens_core.diffusion.counter_noise import noise
from lens_train.objective.times import time_lots, times_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_train.objective.config import ObjectiveConfig

__all__ = ["Targets", "sample_losses", "targets"]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a pack is trained on.

    Args:
        x_NC: noised image tokens.
        velocity_NC: what is to be learned.
        timestep_G: each sample's time.
    """

    x_NC: Tensor
    velocity_NC: Tensor
    timestep_G: Tensor


def targets(config: ObjectiveConfig, tokens: Sequence[Tensor], turns: Sequence[tuple[int, str]], seed: int) -> Targets:
    """Noise the clean tokens.

    Args:
        config: the objective.
        tokens: clean image tokens [n, C] of each sample.
        turns: (epoch, image key) of each sample.
        seed: the run's seed.
    """
    lengths = [len(clean) for clean in tokens]
    device = tokens[0].device
    times_G = times_of(config.times, time_lots(turns, seed), lengths).to(device)
    clean_NC = torch.cat(list(tokens))
    noise_NC = torch.cat([noise(seed, turn, one.shape) for turn, one in zip(turns, tokens, strict=True)])
    velocity_NC = noise_NC.to(device) - clean_NC
    times_N1 = torch.repeat_interleave(times_G, torch.tensor(lengths, device=device))[:, None]
    return Targets(x_NC=clean_NC + times_N1 * velocity_NC, velocity_NC=velocity_NC, timestep_G=times_G)


def sample_losses(velocity_NC: Tensor, target_NC: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean squared error of each sample [G], in float32 or what is wider."""
    errors_N = (velocity_NC.to(target_NC.dtype) - target_NC).square().mean(-1)
    return torch.segment_reduce(errors_N, "mean", lengths=torch.tensor(lengths, device=errors_N.device))
