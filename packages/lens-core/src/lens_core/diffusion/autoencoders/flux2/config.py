"""Settings of the FLUX.2 autoencoder."""

from __future__ import annotations

from typing import Literal

from lens_core.diffusion.autoencoders.config import DiffusersAutoencoderConfig

__all__ = ["Flux2Config"]


class Flux2Config(DiffusersAutoencoderConfig):
    """The autoencoder of the released checkpoints, frozen."""

    type: Literal["flux2"] = "flux2"
