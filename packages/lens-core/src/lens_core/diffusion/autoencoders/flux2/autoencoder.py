"""The FLUX.2 autoencoder: tokens are squares of its latent, normalised by the statistics of a batch norm.

Suffix: C channels of a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusers import AutoencoderKLFlux2

from lens_core.diffusion.autoencoders.diffusers_autoencoder import DiffusersAutoencoder
from lens_core.diffusion.autoencoders.flux2.config import Flux2Config
from lens_core.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Flux2Autoencoder"]


class Flux2Autoencoder(DiffusersAutoencoder):
    """diffusers' AutoencoderKLFlux2. As released: 32 latent channels, tokens of 128, 16 pixels a side."""

    vae_class = AutoencoderKLFlux2
    config_class = Flux2Config

    def patch_side(self) -> int:
        """As the module's config says, 2 in the released one."""
        height, width = self.vae.config.patch_size
        if height != width:
            raise ArtifactError(f"the autoencoder's patch_size, {height}x{width}, is not square")
        return int(width)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Of the batch norm, which normalises and never learns here; its eps is part of the deviation."""
        bn = self.vae.bn
        return bn.running_mean, self._precise(bn.running_var).add(self.vae.config.batch_norm_eps).sqrt()
