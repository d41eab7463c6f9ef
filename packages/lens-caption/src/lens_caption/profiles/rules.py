"""How models count an image, and about how they count a text. Bytes never matter to them, pixels do.

The two families of image rules are functions here; their numbers are data in the profiles.
"""

from __future__ import annotations

import math
from decimal import Decimal

__all__ = ["estimate_text_tokens", "patch_tokens", "tile_tokens"]

_CHARACTERS_PER_TOKEN = 4
_MESSAGE_TOKENS = 8


def tile_tokens(
    width: int,
    height: int,
    *,
    base: int,
    per_tile: int,
    tile: int = 512,
    fit: int = 2048,
    short_side: int = 768,
) -> int:
    """Tokens of an image by tiles: it is scaled down into a square, then to a short side, then cut into tiles.

    Args:
        width: in pixels, as sent.
        height: in pixels, as sent.
        base: tokens of every image.
        per_tile: tokens of each tile, begun tiles included.
        tile: side of a tile in pixels.
        fit: side of the square that the image is first scaled down into.
        short_side: what the shorter side is then scaled down to; nothing is ever scaled up.
    """
    longer, shorter = max(width, height), min(width, height)
    over, under = (fit, longer) if longer > fit else (1, 1)
    if shorter * over > short_side * under:
        over, under = short_side, shorter
    across, down = max(1, width * over // under), max(1, height * over // under)
    return base + per_tile * _pieces(across, tile) * _pieces(down, tile)


def patch_tokens(width: int, height: int, *, side: int, factor: Decimal = Decimal(1), cap: int | None = None) -> int:
    """Tokens of an image by patches: how many it takes to cover it, at most `cap`, times a factor, rounded up.

    Args:
        width: in pixels, as sent.
        height: in pixels, as sent.
        side: side of a patch in pixels.
        factor: tokens per patch.
        cap: the most patches that are counted; None counts them all.
    """
    patches = _pieces(width, side) * _pieces(height, side)
    return math.ceil(factor * (patches if cap is None else min(patches, cap)))


def estimate_text_tokens(text: str) -> int:
    """About how many tokens an instruction takes, a little more rather than less; a pilot's `usage` says it exactly.

    Latin letters take a token per four characters, other scripts about one each; a message has a frame of its own.
    """
    others = sum(not character.isascii() for character in text)
    return math.ceil((len(text) - others) / _CHARACTERS_PER_TOKEN) + others + _MESSAGE_TOKENS


def _pieces(length: int, piece: int) -> int:
    return -(-length // piece)
