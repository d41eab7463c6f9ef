"""Autoencoders whose latent is normalised by a scale and a shift: those of Stable Diffusion, SDXL, SD3, FLUX.1.

Suffixes: C channels of a token, D channels of the latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL

from lens_core.diffusion.autoencoders.autoencoder_kl.config import KLConfig
from lens_core.diffusion.autoencoders.diffusers_autoencoder import DiffusersAutoencoder

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KLAutoencoder"]


class KLAutoencoder(DiffusersAutoencoder):
    """diffusers' AutoencoderKL: a token is (latent - shift)·scale, or normalised by the latent's own mean and deviation
    where its config has them.
    """

    vae_class = AutoencoderKL
    config_class = KLConfig

    def patch_side(self) -> int:
        """As our config says: the module itself has no tokens."""
        assert isinstance(self.config, KLConfig)
        return self.config.patch

    def statistics(self) -> tuple[Tensor, Tensor]:
        """From the scaling_factor, shift_factor, latents_mean and latents_std of the module, as far as they are set."""
        config = self.vae.config
        depth = config.latent_channels
        mean_D = torch.tensor(config.latents_mean or [config.shift_factor or 0.0] * depth)
        deviation_D = torch.tensor(config.latents_std or [1.0] * depth) / config.scaling_factor
        repeats = self.patch**2
        return mean_D.repeat_interleave(repeats), deviation_D.repeat_interleave(repeats)
