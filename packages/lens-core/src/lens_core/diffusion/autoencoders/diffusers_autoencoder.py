"""What wrapping an autoencoder of diffusers takes: reading it strictly, tokens, statistics, bounded memory.

A token is a square of latent cells with its channels in the order channel, row, column (c·p² + p1·p + p2), normalised
with one mean and deviation per channel. Images are encoded to the mode of their posterior: it is what the decoder makes
the most of, and the same image always has the same tokens, so that they can be cached. What the released checkpoints
were trained on is not known.

Suffixes: B images, N tokens of an image, C channels of a token, D channels of the latent, h and w tokens of a side or
latent cells, H and W pixels.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lens_core.diffusion.autoencoders.load import load_vae, locate
from lens_core.diffusion.autoencoders.tiling import decode_in_tiles
from lens_core.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from lens_core.diffusion.autoencoders.config import DiffusersAutoencoderConfig

__all__ = ["DiffusersAutoencoder"]

MAX_BYTES = 8 * 2**30
"""What decoding may take beside the weights. With the 3.8b denoiser in bfloat16 (8.2 GB) it leaves a 24 GB card a third
for the convolutions' workspace and the allocator's slack, and it lets every released size (1440² in float32: 6.7 GB) be
decoded at once, as the released code does."""


class DiffusersAutoencoder(nn.Module):
    """Shared by the wrappers; each names its class of diffusers, the patch of a token, and the statistics.

    Args:
        config: settings; its `path` says what to load.
        vae: a module of diffusers to use instead, as it is.
    """

    vae_class: ClassVar[Any]
    config_class: ClassVar[Any]

    def __init__(self, config: DiffusersAutoencoderConfig, *, vae: Any = None):
        super().__init__()
        if vae is None:
            if config.path is None:
                message = f"the autoencoder {config.type!r} needs 'path' here: a folder or hub id with its weights"
                raise ConfigError(message, key="path")
            vae = load_vae(self.vae_class, *locate(config.path))
        self.config = config
        self.vae = vae
        self.patch = self.patch_side()
        self.stride: int = self.patch * 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.channels: int = self.patch**2 * self.vae.config.latent_channels

    @classmethod
    def wrap(cls, vae: nn.Module) -> Self:
        """An autoencoder around a module of diffusers, which is used as it is, neither copied nor frozen."""
        return cls(cls.config_class(), vae=vae)

    @classmethod
    def from_folder(cls, config: DiffusersAutoencoderConfig, folder: Path, *, dtype: torch.dtype | None = None) -> Self:
        """The autoencoder of a model folder.

        Args:
            config: settings; its `path` plays no part.
            folder: root of the model folder; `vae/` is read.
            dtype: of the weights; by default as stored.

        Raises:
            ArtifactError: it is absent, damaged, or another kind of autoencoder.
        """
        if not (folder / "vae" / "config.json").is_file():
            raise ArtifactError(f"{folder / 'vae' / 'config.json'} is missing")
        return cls(config, vae=load_vae(cls.vae_class, str(folder / "vae"), None, dtype=dtype))

    def save(self, folder: Path) -> None:
        """Write `vae/` of the model folder `folder`, as diffusers does, but without saying where it was read."""
        self.vae.save_pretrained(folder / "vae", safe_serialization=True)
        file = folder / "vae" / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def patch_side(self) -> int:
        """Side of a token in latent cells."""
        raise NotImplementedError

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel of a token, float32 or better, [C] each."""
        raise NotImplementedError

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] to tokens [B, h·w, C], in float32 or better.

        Raises:
            ValueError: height or width is not a multiple of the stride.
        """
        height, width = pixels_BCHW.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"{width}x{height} is not a multiple of the autoencoder's stride, {self.stride}")
        parts = pixels_BCHW.to(self.vae.dtype).split(self._images_at_once(height * width))
        latents_BDhw = torch.cat([self.vae.encode(part).latent_dist.mode() for part in parts])
        p = self.patch
        # b d (h p) (w q) -> b (h w) (d p q)
        cells = latents_BDhw.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5)
        tokens_BNC = self._precise(cells.flatten(3).flatten(1, 2))
        mean_C, deviation_C = (value.to(tokens_BNC) for value in self.statistics())
        return (tokens_BNC - mean_C) / deviation_C

    def decode(self, tokens_BNC: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens back to pixels [B, 3, H, W], in float32 or better; grid is (h, w) in tokens.

        Large images are decoded in tiles, see `tiling`.
        """
        h, w = grid
        p = self.patch
        tokens_BNC = self._precise(tokens_BNC)
        mean_C, deviation_C = (value.to(tokens_BNC) for value in self.statistics())
        cells_BNC = tokens_BNC * deviation_C + mean_C
        # b (h w) (d p q) -> b d (h p) (w q)
        cells = cells_BNC.unflatten(2, (-1, p, p)).unflatten(1, (h, w)).permute(0, 3, 1, 4, 2, 5)
        latents_BDhw = cells.flatten(4).flatten(2, 3).to(self.vae.dtype)
        tile = self.config.tile or self._largest_tile()
        parts = latents_BDhw.split(self._images_at_once(min(h, tile) * min(w, tile) * self.stride**2))
        return torch.cat([decode_in_tiles(self._pixels, part, tile * p) for part in parts])

    def _pixels(self, latents_BDhw: Tensor) -> Tensor:
        return self._precise(self.vae.decode(latents_BDhw).sample)

    def _precise(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def _bytes_per_pixel(self) -> int:
        """Peak memory of decoding, by pixel.

        It is reached in the last block: three tensors at full resolution (a residual, its normalisation, and the
        activation of that) as wide as the block above it.
        """
        config = self.vae.config
        widths = config.get("decoder_block_out_channels") or config.block_out_channels
        return 3 * max(widths[:2]) * self.vae.dtype.itemsize

    def _images_at_once(self, pixels: int) -> int:
        return max(1, MAX_BYTES // (pixels * self._bytes_per_pixel()))

    def _largest_tile(self) -> int:
        """Side in tokens of the largest square that may be decoded at once."""
        return max(8, math.isqrt(MAX_BYTES // self._bytes_per_pixel()) // self.stride)
