"""Decoding a large image tile by tile, in the memory of one tile.

Neighbouring tiles overlap by at least a quarter of their side. What a tile lacks is context, and it lacks most at its
edges: so the outer quarter of an overlap is thrown away, and only the half in its middle blends from one tile to the
other, linearly. A decoder that looks no farther than that quarter gives exactly what it gives for the whole image. A
real one's normalisation and attention see the whole tile, so tiles should be as large as the memory allows, and they
are all of one size.

Suffixes: B images, C channels, h and w cells of the latent, H and W pixels, I tiles along a side, P pixels of a side.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["blend_weights", "decode_in_tiles", "tile_starts"]


def decode_in_tiles(decode: Callable[[Tensor], Tensor], cells_BChw: Tensor, tile: int) -> Tensor:
    """Decode in tiles and join them; an image no larger than a tile is decoded at once.

    Args:
        decode: a decoder of latents [B, C, h, w] to pixels [B, C', h·s, w·s], for some whole s.
        cells_BChw: the latents.
        tile: side of a tile in cells, 4 or more.
    """
    h, w = cells_BChw.shape[-2:]
    if max(h, w) <= tile:
        return decode(cells_BChw)
    rows, columns = tile_starts(h, tile), tile_starts(w, tile)
    height, width = min(h, tile), min(w, tile)
    joined_BCHW: Tensor | None = None
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            pixels_BCHW = decode(cells_BChw[..., y : y + height, x : x + width])
            s = pixels_BCHW.shape[-1] // width
            if joined_BCHW is None:
                joined_BCHW = pixels_BCHW.new_zeros(*pixels_BCHW.shape[:2], h * s, w * s)
                down_IP = blend_weights(h, tile, s).to(pixels_BCHW)
                across_IP = blend_weights(w, tile, s).to(pixels_BCHW)
            here = (..., slice(y * s, (y + height) * s), slice(x * s, (x + width) * s))
            joined_BCHW[here] += pixels_BCHW * down_IP[i, here[1], None] * across_IP[j, here[2]]
    assert joined_BCHW is not None
    return joined_BCHW


def tile_starts(size: int, tile: int) -> list[int]:
    """Where tiles begin on a side of `size` cells: as few as overlap by a quarter, evenly spread from end to end."""
    if size <= tile:
        return [0]
    overlap = tile // 4
    last = -(-(size - tile) // (tile - overlap))
    return [round(i * (size - tile) / last) for i in range(last + 1)]


def blend_weights(size: int, tile: int, scale: int) -> Tensor:
    """The share of each tile in each pixel along a side: float32 [I, P], columns sum to 1.

    Args:
        size: of the side, in cells.
        tile: of a tile, in cells.
        scale: pixels per cell.
    """
    starts = tile_starts(size, tile)
    ramp = tile // 4 / 2
    centre_P = (torch.arange(size * scale) + 0.5) / scale
    # passed[i] rises from 0 to 1 in the middle of the overlap of the tiles i-1 and i; a tile is what lies between two
    # such rises, so that the sum telescopes to 1, even where three tiles overlap.
    middles = [(start + before + tile) / 2 for before, start in itertools.pairwise(starts)]
    rises = [((centre_P - middle) / ramp + 0.5).clamp(0, 1) for middle in middles]
    passed = torch.stack([torch.ones_like(centre_P), *rises, torch.zeros_like(centre_P)])
    return passed[:-1] - passed[1:]
