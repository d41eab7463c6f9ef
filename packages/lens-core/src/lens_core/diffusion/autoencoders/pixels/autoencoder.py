"""Pixels as tokens: nothing is learned and nothing is lost.

Suffixes: B images, N tokens of an image, C channels, H and W pixels.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from lens_core.diffusion.autoencoders.pixels.config import PixelsConfig

__all__ = ["Pixels"]


class Pixels:
    """Cuts images into patches; channel order inside a token is colour, row, column."""

    def __init__(self, config: PixelsConfig):
        self.config = config
        self.stride = config.patch
        self.channels = 3 * config.patch**2

    @classmethod
    def from_folder(cls, config: PixelsConfig, folder: Path, *, dtype: torch.dtype | None = None) -> Self:
        """The autoencoder of a model folder: its config is all there is to it."""
        return cls(config)

    def save(self, folder: Path) -> None:
        """Write `vae/` of the model folder `folder`: its settings, for those who look there."""
        (folder / "vae").mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.config.model_dump(mode="json"), indent=2) + "\n"
        (folder / "vae" / "config.json").write_text(text, encoding="utf-8")

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to tokens [B, h·w, 3·patch²].

        Raises:
            ValueError: height or width is not a multiple of the patch.
        """
        b, c, height, width = pixels_BCHW.shape
        p = self.stride
        if height % p or width % p:
            raise ValueError(f"{width}x{height} is not a multiple of the patch, {p}")
        # b c (h p) (w q) -> b (h w) (c p q)
        patches = pixels_BCHW.view(b, c, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(b, -1, c * p * p)

    def decode(self, tokens_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens back to pixels [B, 3, H, W]; grid is (h, w) in tokens."""
        h, w = grid
        p = self.stride
        # b (h w) (c p q) -> b c (h p) (w q)
        patches = tokens_BNC.view(len(tokens_BNC), h, w, 3, p, p).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(len(tokens_BNC), 3, h * p, w * p)
