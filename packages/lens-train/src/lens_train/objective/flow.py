"""Rectified flow: learn the velocity from noise to image (arXiv 2209.03003).

x_t = (1 - t)·x0 + t·noise, t = 1 at pure noise; the target is v = noise - x0. Timesteps are logit-normal, and their
mean may grow with the number of image tokens, because a large image stays recognisable at a noise level that
drowns a small one.

Suffixes: N image tokens of a batch, C channels, G samples.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens_core.diffusion.counter_noise import noise, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_train.data.captioned import Sample
    from lens_train.objective.config import ObjectiveConfig

__all__ = ["Targets", "quartile", "resolution_mean", "sample_losses", "targets"]


class Targets:
    """What a batch is trained on: noised tokens, the velocity, the times.

    Args:
        x_NC: noised image tokens.
        velocity_NC: the target.
        timestep_G: each sample's time.
        captions: each sample's caption, "" where it is dropped.
    """

    def __init__(self, x_NC: Tensor, velocity_NC: Tensor, timestep_G: Tensor, captions: list[str]):
        self.x_NC = x_NC
        self.velocity_NC = velocity_NC
        self.timestep_G = timestep_G
        self.captions = captions


def targets(config: ObjectiveConfig, tokens: Sequence[Tensor], samples: Sequence[Sample], seed: int) -> Targets:
    """Noise a batch; all randomness is keyed by (seed, epoch, image key).

    Args:
        config: the objective.
        tokens: clean image tokens [n, C] of each sample.
        samples: which samples they are.
        seed: the run's seed.
    """
    lots_G2 = torch.stack([uniform(seed, ("lots", sample.epoch, sample.key), (2,)) for sample in samples])
    lengths = [len(clean) for clean in tokens]
    means = [resolution_mean(n) if config.timestep_mean == "resolution" else config.timestep_mean for n in lengths]
    # A standard normal number is the normal quantile of a uniform one.
    normal_G = torch.special.ndtri(lots_G2[:, 0])
    times_G = torch.sigmoid(torch.tensor(means, dtype=torch.float64) + config.timestep_std * normal_G).float()
    dropped = (lots_G2[:, 1] < config.caption_dropout).tolist()
    captions = ["" if drop else sample.caption for drop, sample in zip(dropped, samples, strict=True)]

    device = tokens[0].device
    clean_NC = torch.cat(list(tokens))
    noise_NC = torch.cat([noise(seed, (s.epoch, s.key), one.shape) for s, one in zip(samples, tokens, strict=True)])
    velocity_NC = noise_NC.to(device) - clean_NC
    times_N1 = torch.repeat_interleave(times_G, torch.tensor(lengths))[:, None].to(device)
    return Targets(clean_NC + times_N1 * velocity_NC, velocity_NC, times_G.to(device), captions)


def sample_losses(velocity_NC: Tensor, target_NC: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean squared error of each sample [G], in float32."""
    errors_N = (velocity_NC.float() - target_NC).square().mean(-1)
    return torch.segment_reduce(errors_N, "mean", lengths=torch.tensor(lengths, device=errors_N.device))


def resolution_mean(num_tokens: int) -> float:
    """The paper's mean of the logit-normal timesteps: linear in the tokens, 1.0 at 256 and 1.3 at 4096."""
    return 1.0 + 0.3 * (num_tokens - 256) / (4096 - 256)


def quartile(t: float) -> int:
    """Which quarter of [0, 1] a time lies in, 0 to 3."""
    return min(3, math.floor(4 * t))
