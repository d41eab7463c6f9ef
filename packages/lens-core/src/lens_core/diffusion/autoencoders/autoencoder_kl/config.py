"""Settings of the autoencoders with a scale and a shift."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.diffusion.autoencoders.config import DiffusersAutoencoderConfig

__all__ = ["KLConfig"]


class KLConfig(DiffusersAutoencoderConfig):
    """An AutoencoderKL of diffusers, frozen."""

    type: Literal["autoencoder-kl"] = "autoencoder-kl"
    patch: int = Field(2, gt=0, le=8, description="Side of a token in cells of the latent.")
