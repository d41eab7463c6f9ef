"""How an image looks, in 64 bits and 48 numbers: enough to say that two images are different, cheaply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["Look", "look_of"]

_MAX_COLOUR_DISTANCE = 40.0


@dataclass(frozen=True)
class Look:
    """A difference hash, and the mean colours of a 4 × 4 grid.

    The hash follows edges and knows nothing of colour; flat images, whose hash is empty, differ by their colours.
    """

    bits: int
    colours: tuple[float, ...]

    def differs(self, other: Look, *, min_bits: int) -> bool:
        """Whether two images look different: in edges by `min_bits` of 64, or plainly in colour."""
        if (self.bits ^ other.bits).bit_count() >= min_bits:
            return True
        return max(abs(a - b) for a, b in zip(self.colours, other.colours, strict=True)) > _MAX_COLOUR_DISTANCE


def look_of(pixels_HW3: np.ndarray) -> Look:
    """The look of an image of any size."""
    image = Image.fromarray(pixels_HW3)
    grey_8x9 = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    # A step of one grey level is noise of the JPEG, no edge.
    bits_8x8 = (grey_8x9[:, 1:] - grey_8x9[:, :-1]) > 1
    colours_4x4x3 = np.asarray(image.resize((4, 4), Image.Resampling.BOX), np.float64)
    return Look(int.from_bytes(np.packbits(bits_8x8).tobytes()), tuple(colours_4x4x3.ravel().tolist()))
