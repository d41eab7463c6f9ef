"""Captions from pixels, and images that bear a number: whoever mixes up two images is found out.

A numbered image is a grid of 8 × 8 dark and light cells: 40 bits of number and 24 bits of checksum. It survives scaling
down to about 64 pixels and JPEG, and the captions of photographs do not mention a number by accident.

Shapes: H height, W width, 3 the colours.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["caption_of", "caption_without_looking", "number_in_text", "number_of", "numbered_image", "numbered_jpeg"]

MAX_NUMBER = 2**40 - 1

_CELLS = 8
# Neighbouring numbers become bits that have nothing in common, so that their images are no near-duplicates.
_STIR = 0x9E3779B97F | 1
_UNSTIR = pow(_STIR, -1, 2**40)
_MIN_CONTRAST = 50.0

_COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (220, 40, 40),
    "green": (50, 170, 60),
    "blue": (50, 80, 210),
    "yellow": (240, 220, 60),
    "orange": (240, 140, 40),
    "purple": (140, 60, 170),
    "teal": (30, 140, 140),
    "brown": (120, 75, 40),
    "pink": (240, 150, 180),
}
_PLACES = ("upper left", "upper right", "lower left", "lower right")
_NUMBER = re.compile(r"\bnumber (\d+)\b", re.IGNORECASE)

# fmt: off
_ADJECTIVES = (
    "quiet", "tall", "round", "narrow", "bright", "dim", "wooden", "smooth", "rough", "distant", "shallow", "curved",
    "heavy", "soft", "striped",
)
_NOUNS = (
    "ladder", "window", "basket", "river", "lantern", "chair", "kettle", "bridge", "fence", "bottle", "garden", "tower",
    "carpet", "wagon", "mirror",
)
_VERBS = ("leans", "rests", "stands", "hangs", "lies", "waits", "glows", "fades", "floats", "bends")
_JOINTS = ("beside", "behind", "under", "above", "near", "against", "beyond", "before")
# fmt: on


def caption_of(pixels_HW3: np.ndarray, words: int = 0, *, size: tuple[int, int] | None = None) -> str:
    """The caption that the server gives an image: its number if it bears one, its size, and its colours.

    Args:
        pixels_HW3: uint8.
        words: about how many words; 0 gives the plain caption, of some fifty.
        size: width and height, if these pixels are a smaller copy.
    """
    width, height = size or (pixels_HW3.shape[1], pixels_HW3.shape[0])
    number = number_of(pixels_HW3)
    quarters = np.asarray(Image.fromarray(pixels_HW3).resize((2, 2), Image.Resampling.BOX)).reshape(4, 3).tolist()
    subject = (
        "Four quarters of colour" if number is None else f"The number {number}, as a grid of dark and light cells,"
    )
    colours = ", ".join(f"the {place} is {_named(colour)}" for place, colour in zip(_PLACES, quarters, strict=True))
    return _lengthened(f"{subject} on a field of {width} by {height} pixels: {colours}.", words)


def caption_without_looking(digest: str, width: int, height: int, words: int = 0) -> str:
    """A caption from the hash of the file, for benchmarks in which decoding would cost too much."""
    return _lengthened(f"A file whose hash begins with {digest[:16]} holds {width} by {height} pixels.", words)


def numbered_image(number: int, width: int = 512, height: int = 512) -> np.ndarray:
    """An image that bears a number, uint8 [height, width, 3]; always the same one.

    Raises:
        ValueError: the number is not in 0 … 2⁴⁰ − 1, or the image is too small to hold the grid.
    """
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"an image holds a number from 0 to {MAX_NUMBER}")
    if min(width, height) < 4 * _CELLS:
        raise ValueError(f"an image with a number is at least {4 * _CELLS} pixels wide and high")
    rng = random.Random(number)
    dark = [rng.randint(10, 80) for _ in range(3)]
    light = [rng.randint(180, 245) for _ in range(3)]
    bits = (number * _STIR % 2**40) << 24 | _checksum(number)
    cells_88 = np.array([bits >> place & 1 for place in range(_CELLS**2)], bool).reshape(_CELLS, _CELLS)
    cells_883 = np.where(cells_88[..., None], light, dark).astype(np.uint8)
    rows = np.arange(height) * _CELLS // height
    columns = np.arange(width) * _CELLS // width
    return cells_883[rows][:, columns]


def numbered_jpeg(number: int, width: int = 512, height: int = 512, quality: int = 90) -> bytes:
    """`numbered_image` as a JPEG file."""
    stream = io.BytesIO()
    Image.fromarray(numbered_image(number, width, height)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def number_of(pixels_HW3: np.ndarray) -> int | None:
    """The number that an image bears; None if it bears none."""
    height, width = pixels_HW3.shape[:2]
    if min(width, height) < 2 * _CELLS:
        return None
    levels = []
    for row in range(_CELLS):
        for column in range(_CELLS):
            # The middle of a cell is free of the blur of its edges; few pixels tell dark from light.
            top, left = (2 * row + 1) * height // (2 * _CELLS), (2 * column + 1) * width // (2 * _CELLS)
            levels.append(float(pixels_HW3[top - 1 : top + 1, left - 1 : left + 1].mean()))
    low, high = min(levels), max(levels)
    if high - low < _MIN_CONTRAST:
        return None
    bits = sum(1 << place for place, level in enumerate(levels) if level > (low + high) / 2)
    number = (bits >> 24) * _UNSTIR % 2**40
    return number if bits & 0xFFFFFF == _checksum(number) else None


def number_in_text(text: str) -> int | None:
    """The number that a caption speaks of; None if it speaks of none."""
    match = _NUMBER.search(text)
    return int(match[1]) if match else None


def _checksum(number: int) -> int:
    return int.from_bytes(hashlib.sha256(number.to_bytes(5)).digest()[:3])


def _named(colour: Sequence[int]) -> str:
    name = min(_COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(_COLOURS[name], colour, strict=True)))
    return f"{name} ({' '.join(map(str, colour))})"


def _lengthened(text: str, words: int) -> str:
    """With sentences added until it has about `words` words, a third more or fewer by chance."""
    rng = random.Random(text)
    target = words * rng.uniform(2 / 3, 4 / 3)
    count = len(text.split())
    while count + 6 < target:
        first, second = rng.sample(_NOUNS, 2)
        sentence = (
            f" A {rng.choice(_ADJECTIVES)} {first} {rng.choice(_VERBS)} {rng.choice(_JOINTS)} "
            f"{rng.randint(2, 99)} {rng.choice(_ADJECTIVES)} {second}s."
        )
        text += sentence
        count += len(sentence.split())
    return text
