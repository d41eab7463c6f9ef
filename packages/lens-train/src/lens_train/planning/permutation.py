"""Permutations and lots by counter: any element at once, without the others.

`permute` is a Feistel network over a rectangle of places (Black and Rogaway 2002, "Ciphers with arbitrary finite
domains"): a place is a pair (left, right), and in turn each half is shifted by a hash of the other, which can be undone
and so is a permutation. Places of the rectangle beyond the size are walked on from ("cycle walking"); the rectangle
exceeds the size by less than its side, so that is rare. Hashes are outputs of SplitMix64 (Steele, Lea and Flood 2014)
at counter positions: whole arrays of places take microseconds, under as many keys.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["key_of", "lots", "mix", "permute", "subkeys"]

ROUNDS = 24
"""Even: with 24, all orders of a handful of places are equally likely; large rows look random with a third of it."""
_STEP = np.uint64(0x9E3779B97F4A7C15)


def key_of(*parts: str | int) -> int:
    """A 64-bit key from anything that names a purpose: the first bytes of sha256 over the parts as JSON."""
    digest = hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def subkeys(key: int, count: int) -> NDArray[np.uint64]:
    """`count` keys that follow from one."""
    return mix(np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * _STEP)


def permute(places: ArrayLike, size: int, keys: ArrayLike) -> NDArray[np.int64]:
    """Where each place of a row of `size` goes, under its own key.

    Args:
        places: integers in [0, size).
        size: how many places are permuted.
        keys: 64-bit keys, broadcast against `places`; one key is one permutation.
    """
    places, keys = np.broadcast_arrays(np.asarray(places, dtype=np.uint64), np.asarray(keys, dtype=np.uint64))
    result = np.array(places.reshape(-1))
    keys = keys.reshape(-1)
    walking = np.arange(len(result))
    while len(walking):
        result[walking] = _once(result[walking], size, keys[walking])
        walking = walking[result[walking] >= size]
    return result.reshape(places.shape).astype(np.int64)


def lots(words: ArrayLike, key: int) -> NDArray[np.float64]:
    """A uniform number in (0, 1) for each of a row of 64-bit words, such as the first bytes of images' keys."""
    hashed = mix(mix(np.atleast_1d(np.asarray(words, dtype=np.uint64)) ^ np.uint64(key)) + np.uint64(key))
    # 53 bits, shifted by half a step so that neither 0 nor 1 occurs.
    return ((hashed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64: every bit depends on all bits."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _once(places: NDArray[np.uint64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    tall = math.isqrt(size - 1) + 1
    wide = -(-size // tall)
    left, right = places // np.uint64(wide), places % np.uint64(wide)
    for number in range(0, ROUNDS, 2):
        left = (left + _hash(right, number, keys)) % np.uint64(tall)
        right = (right + _hash(left, number + 1, keys)) % np.uint64(wide)
    return left * np.uint64(wide) + right


def _hash(half: NDArray[np.uint64], number: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # A bit less, so that the sum with the other half does not overflow: that would no longer be a shift.
    return mix(keys + (half * np.uint64(ROUNDS) + np.uint64(number)) * _STEP) >> np.uint64(1)
