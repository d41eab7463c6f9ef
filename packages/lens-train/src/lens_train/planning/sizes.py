"""At which size an image is trained.

Sizes are (height, width) in pixels. A base is the side of a square; its nine sizes have about the area of that square
and the ratios from 1:2 to 2:1 of `lens_core.diffusion.resolutions`, which has the tables that the released models were
made for. Those of other bases are made after them.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lens_core.diffusion.resolutions import RESOLUTIONS
from lens_core.errors import ConfigError
from lens_train.planning.permutation import key_of, lots

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SizeRule", "size_table"]


@lru_cache(maxsize=64)
def size_table(base: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """The sizes of a base, from the tallest to the widest.

    Args:
        base: side of the square, such as 512.
        multiple: what height and width are multiples of: the autoencoder's stride.

    Raises:
        ConfigError: the base is too small for nine ratios in multiples of that.
    """
    pattern, scale = (RESOLUTIONS[base], 1.0) if base in RESOLUTIONS else (RESOLUTIONS[1024], base / 1024)
    table = tuple(_nearest(height * scale, width * scale, multiple) for height, width in pattern.values())
    if len(set(table)) < len(table):
        raise ConfigError(f"the base {base} is too small for sizes in multiples of {multiple}")
    return table


class SizeRule:
    """Gives every image a size: the closest ratio, of a base that is drawn by counter of the image's key.

    Args:
        bases: weights by base.
        multiple: see `size_table`.
        seed: the run's seed.
    """

    def __init__(self, bases: Mapping[int, float], *, multiple: int, seed: int):
        self._weights = dict(sorted(bases.items()))
        self._tables = {base: size_table(base, multiple) for base in self._weights}
        self._key = key_of("base", seed)

    def __call__(self, height: int, width: int, key: str) -> tuple[int, int]:
        """The size to train an image at.

        Bases to which it would have to be scaled up are left out, as long as there is another; else the smallest is
        taken.

        Args:
            height: of the image.
            width: of the image.
            key: its sha256 (hex).
        """
        sizes = {base: _closest(table, height, width) for base, table in self._tables.items()}
        reached = [base for base, size in sizes.items() if size[0] <= height and size[1] <= width]
        if not reached:
            return sizes[min(sizes)]
        word = int.from_bytes(bytes.fromhex(key[:16]), "little")
        ends = np.cumsum([self._weights[base] for base in reached])
        (place,) = np.searchsorted(ends, lots(word, self._key) * ends[-1], side="right")
        return sizes[reached[place]]


def _closest(table: tuple[tuple[int, int], ...], height: int, width: int) -> tuple[int, int]:
    # By the factor between ratios: 1:2 is as far from the square as 2:1.
    return min(table, key=lambda size: abs(math.log(size[0] * width / (size[1] * height))))


def _nearest(height: float, width: float, multiple: int) -> tuple[int, int]:
    """The multiples around a size that change its area and its ratio least."""

    def off(size: tuple[int, int]) -> float:
        tall, wide = math.log(size[0] / height), math.log(size[1] / width)
        return abs(tall + wide) + abs(tall - wide)

    sides = [{max(1, math.floor(side / multiple)), math.ceil(side / multiple)} for side in (height, width)]
    return min(((tall * multiple, wide * multiple) for tall, wide in itertools.product(*map(sorted, sides))), key=off)
