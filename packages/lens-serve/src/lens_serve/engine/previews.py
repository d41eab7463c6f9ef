"""What a picture under way looks like: a linear map from its tokens to a small picture.

Suffixes: N tokens, C channels of a token, R rows of a fit, H and W pixels, h and w tokens.

Latents are nearly linear in colour, so that a matrix, found once by least squares, shows in less than a millisecond
what would take the decoder as long as several steps. A token becomes 2 by 2 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

    from lens_core.contracts.diffusion import Autoencoder

__all__ = ["LinearPreview", "Moments"]

GRID = 16
"""Tokens on a side of the pictures of the fit."""


class LinearPreview:
    """Shows tokens.

    Args:
        weights: float32 [C+1, 12]: what the channels of a token, and a 1, contribute to 2 by 2 pixels of 3 colours.
    """

    def __init__(self, weights: Tensor):
        self._weights = weights

    @classmethod
    def fit(cls, autoencoder: Autoencoder, device: torch.device) -> LinearPreview:
        """The map that comes closest to undoing an autoencoder's own encodings of simple pictures."""
        pixels_BCHW = _simple_pictures(GRID * autoencoder.stride)
        tokens = [autoencoder.encode(picture[None].to(device))[0].cpu().double() for picture in pixels_BCHW]
        small = F.adaptive_avg_pool2d(pixels_BCHW, 2 * GRID)
        # b c (h p) (w q) -> (b h w) (p q c)
        target = small.unflatten(3, (GRID, 2)).unflatten(2, (GRID, 2)).permute(0, 2, 4, 3, 5, 1).reshape(-1, 12)
        rows = torch.cat(tokens)
        # A little ridge, since a flat picture's channels may depend on each other.
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
        ridge = 1e-4 * rows.square().mean().sqrt() * len(rows) ** 0.5 * torch.eye(rows.shape[1], dtype=rows.dtype)
        zeros = torch.zeros(rows.shape[1], 12, dtype=rows.dtype)
        solved = torch.linalg.lstsq(torch.cat([rows, ridge]), torch.cat([target.double(), zeros])).solution
        return cls(solved.float().to(device))

    def show(self, tokens_NC: Tensor, grid: tuple[int, int]) -> np.ndarray:
        """A uint8 picture [2·h, 2·w, 3] of tokens on a grid [h, w]."""
        height, width = grid
        pixels = tokens_NC.float() @ self._weights[:-1] + self._weights[-1]
        # (h w) (p q c) -> (h p) (w q) c
        pixels = pixels.view(height, width, 2, 2, 3).transpose(1, 2).reshape(2 * height, 2 * width, 3)
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


class Moments:
    """When to show a picture: at equal parts of the noise that it begins with, not of its steps.

    The last step of twenty may remove a third of the noise: parts of the steps would show little but noise.

    Args:
        count: how often at most; a step that passes several moments shows the last of them only.
        begin: the time of the first step.
    """

    def __init__(self, count: int, begin: float):
        self._ahead = [begin * part / (count + 1) for part in range(1, count + 1)]

    def due(self, time: float) -> bool:
        """Whether to show the picture that has come to this time."""
        passed = False
        while self._ahead and time <= self._ahead[-1] + 1e-6:
            self._ahead.pop()
            passed = True
        return passed


def _simple_pictures(side: int) -> Tensor:
    """Noise of all sizes, from grain to clouds, in all colours, and nearly flat ones: [8, 3, side, side] in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for cells in (1, 2, 4, 8, 16, 32, 64, 128):
        cells = min(cells, side)
        coarse = torch.rand(1, 3, cells, cells, generator=generator) * 2 - 1
        smooth = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
        grain = 0.1 * torch.randn(1, 3, side, side, generator=generator)
        pictures.append((smooth + grain).clamp(-1, 1))
    return torch.cat(pictures)
