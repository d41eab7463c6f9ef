"""Finds, among the images kept so far, the one that looks most like a new one.

Candidates come from a 64-bit perceptual hash, cut into four bands of 16 bits. Hashes that differ in at most 11 bits
differ in at most 2 bits of some band, so looking up each band and its variants by up to two bits finds *all* of them.

A hash alone merges images that have nothing in common but emptiness. So every candidate is confirmed by thumbnails in
colour: the root mean square of their difference must be small against their contrast.
"""

from __future__ import annotations

import itertools
import struct
from array import array

import numpy as np

from lens_core.filters import statistics

__all__ = ["MARK_BYTES", "NearIndex", "difference", "mark"]

SIDE = 12
BANDS = 4
THUMBNAIL_BYTES = 3 * SIDE * SIDE
MARK_BYTES = 8 + THUMBNAIL_BYTES

FLOOR = 16.0
"""Levels of 255 that are added to the contrast: plain images, which have none, must agree to a few levels."""

_VARIANTS = np.array(
    [0]
    + [1 << bit for bit in range(16)]
    + [(1 << first) | (1 << second) for first, second in itertools.combinations(range(16), 2)],
    dtype=np.uint16,
)


def mark(pixels_HW3: np.ndarray) -> bytes:
    """What the index remembers of an image: its hash, and its thumbnail."""
    thumbnail = statistics.thumbnail(pixels_HW3, SIDE)
    return struct.pack(">Q", statistics.perceptual_hash(pixels_HW3)) + thumbnail.tobytes()


def difference(one_T: np.ndarray, others_NT: np.ndarray) -> np.ndarray:
    """How much thumbnails differ, in units of their contrast: float [N]; 0 is the same, unrelated ones are near 1.

    T runs over the thumbnail's pixels and colours.
    """
    one, others = one_T.astype(np.float32), others_NT.astype(np.float32)
    distance: np.ndarray = np.sqrt(((others - one) ** 2).mean(axis=1))
    relative: np.ndarray = distance / ((_contrast(one[None]) + _contrast(others)) / 2 + FLOOR)
    return relative


def _contrast(thumbnails_NT: np.ndarray) -> np.ndarray:
    """Root mean square of a thumbnail around its mean colour: [N]."""
    colours = thumbnails_NT.reshape(len(thumbnails_NT), -1, 3)
    spread: np.ndarray = ((colours - colours.mean(axis=1, keepdims=True)) ** 2).mean(axis=(1, 2))
    contrast: np.ndarray = np.sqrt(spread)
    return contrast


class NearIndex:
    """Marks in the order in which they were added: about 0.5 kB each."""

    def __init__(self, bits: int):
        self.bits = bits
        self.names: list[str] = []
        self._hashes = np.empty(1024, np.uint64)
        self._thumbnails = np.empty((1024, THUMBNAIL_BYTES), np.uint8)
        self._bands: list[dict[int, array[int]]] = [{} for _ in range(BANDS)]

    def __len__(self) -> int:
        return len(self.names)

    def add(self, mark: bytes, name: str) -> None:
        """Remember an image."""
        number = len(self.names)
        if number == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
            self._thumbnails = np.concatenate([self._thumbnails, np.empty_like(self._thumbnails)])
        self._hashes[number] = struct.unpack_from(">Q", mark)[0]
        self._thumbnails[number] = np.frombuffer(mark, np.uint8, offset=8)
        for band, value in zip(self._bands, struct.unpack_from(">4H", mark), strict=True):
            band.setdefault(value, array("I")).append(number)
        self.names.append(name)

    def nearest(self, mark: bytes) -> tuple[str, float] | None:
        """Name and difference of the most similar image, the first of equals; None if no hash is near."""
        numbers = self._candidates(mark)
        if not len(numbers):
            return None
        differences = difference(np.frombuffer(mark, np.uint8, offset=8), self._thumbnails[numbers])
        best = int(differences.argmin())
        return self.names[numbers[best]], float(differences[best])

    def _candidates(self, mark: bytes) -> np.ndarray:
        """Numbers of all images whose hashes are near, ascending."""
        (hash_,) = struct.unpack_from(">Q", mark)
        found = array("I")
        for band, value in zip(self._bands, struct.unpack_from(">4H", mark), strict=True):
            for variant in (np.uint16(value) ^ _VARIANTS).tolist():
                found.extend(band.get(variant, ()))
        numbers: np.ndarray = np.unique(np.asarray(found, dtype=np.int64))
        near: np.ndarray = numbers[np.bitwise_count(self._hashes[numbers] ^ np.uint64(hash_)) <= self.bits]
        return near
