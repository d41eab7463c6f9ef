"""What the cheap filters measure, as plain formulas in NumPy. H, W: height and width in pixels; 3: red, green, blue."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

__all__ = ["clarity", "entropy", "grey", "luminance", "perceptual_hash", "thumbnail"]

HASH_SIDE = 32
HASH_FREQUENCIES = 8


def grey(pixels_HW3: np.ndarray) -> np.ndarray:
    """Luma by ITU-R 601, as JPEG has it: uint8 [H, W]."""
    return np.asarray(Image.fromarray(pixels_HW3).convert("L"))


def clarity(pixels_HW3: np.ndarray) -> float:
    """Variance of the grey values' Laplacian (four neighbours less four times the middle): small without sharp edges.

    Beyond the border the outermost pixels go on.
    """
    padded = np.pad(grey(pixels_HW3).astype(np.int16), 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * middle
    return float(laplacian.var(dtype=np.float64))


def entropy(pixels_HW3: np.ndarray) -> float:
    """Shannon entropy of the histogram of grey values, in bits: 0 for a plain image, at most 8."""
    counts = np.bincount(grey(pixels_HW3).ravel(), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    return float(abs((shares * np.log2(shares)).sum()))


def luminance(pixels_HW3: np.ndarray) -> float:
    """Mean V of HSV, the largest of the three channels: 0 is black, 1 is white or a pure colour."""
    red, green, blue = np.moveaxis(pixels_HW3, 2, 0)
    return float(np.maximum(np.maximum(red, green), blue).mean(dtype=np.float64) / 255)


def perceptual_hash(pixels_HW3: np.ndarray) -> int:
    """64 bits that change little when an image is compressed, scaled or trimmed.

    The image is squeezed to 32x32 grey values; a bit says whether one of its 64 lowest frequencies (of the cosine
    transform) lies above their median. The very lowest, the mean, lies above nearly always, so it counts for nothing.
    """
    image = Image.fromarray(grey(pixels_HW3)).resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX)
    basis = _cosines()
    frequencies = (basis @ np.asarray(image, np.float64) @ basis.T).ravel()
    bits = frequencies > np.median(frequencies[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(pixels_HW3: np.ndarray, side: int) -> np.ndarray:
    """The image squeezed to a small square of mean colours: uint8 [side, side, 3]."""
    return np.asarray(Image.fromarray(pixels_HW3).resize((side, side), Image.Resampling.BOX))


@functools.cache
def _cosines() -> np.ndarray:
    """The lowest rows of the cosine transform (type II, unscaled): [8, 32]."""
    frequency, place = np.arange(HASH_FREQUENCIES)[:, None], np.arange(HASH_SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * HASH_SIDE))
