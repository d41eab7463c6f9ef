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
    x, velocity, times, captions = [], [], [], []
    for clean, sample in zip(tokens, samples, strict=True):
        mean = resolution_mean(len(clean)) if config.timestep_mean == "resolution" else config.timestep_mean
        t = float(
            torch.sigmoid(mean + config.timestep_std * noise(seed, ("time", sample.epoch, sample.key), (1,)).double())
        )
        drop = uniform(seed, ("drop", sample.epoch, sample.key), (1,)).item() < config.caption_dropout
        eps = noise(seed, (sample.epoch, sample.key), clean.shape).to(clean.device)
        x.append((1 - t) * clean + t * eps)
        velocity.append(eps - clean)
        times.append(t)
        captions.append("" if drop else sample.caption)
    device = tokens[0].device
    return Targets(torch.cat(x), torch.cat(velocity), torch.tensor(times, device=device), captions)


def sample_losses(velocity_NC: Tensor, target_NC: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean squared error of each sample [G], in float32."""
    errors_N = (velocity_NC.float() - target_NC).square().mean(-1)
    return torch.stack([part.mean() for part in errors_N.split(list(lengths))])


def resolution_mean(num_tokens: int) -> float:
    """The paper's mean of the logit-normal timesteps: linear in the tokens, 1.0 at 256 and 1.3 at 4096."""
    return 1.0 + 0.3 * (num_tokens - 256) / (4096 - 256)


def quartile(t: float) -> int:
    """Which quarter of [0, 1] a time lies in, 0 to 3."""
    return min(3, math.floor(4 * t))
