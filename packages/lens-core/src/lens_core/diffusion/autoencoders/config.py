"""What the autoencoders of diffusers have in common."""

from __future__ import annotations

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["DiffusersAutoencoderConfig"]


class DiffusersAutoencoderConfig(ComponentConfig):
    """A pretrained autoencoder, frozen."""

    path: str | None = Field(
        None,
        min_length=1,
        description="Pretrained weights to train with: a folder (itself or its vae/), or a hub id, perhaps with a "
        "folder after it, such as black-forest-labs/FLUX.2-dev/vae. A model folder brings its own.",
    )
    tile: int | None = Field(
        None,
        ge=8,
        description="Decode larger images in overlapping tiles of this many tokens a side; by default, where decoding "
        "one image at once would take more than 8 GiB.",
    )
