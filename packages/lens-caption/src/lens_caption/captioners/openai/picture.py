"""The picture that is sent: scaled down and encoded. That is nearly all of a client's work, so it takes a short cut.

A JPEG can be decoded to n/8 of its size, which spares most of the scaling. A plain one is read so, to the smallest
size that is not too small, and what is left is averaged over areas. Everything that is not plain (an orientation, a
colour profile, four channels, damage) goes through the decode function that all of Lens shares.

simplejpeg is imported where it is used: a quote asks for sizes only, and is made where nothing is sent.
"""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from PIL import Image

from lens_core.images import decode, header

__all__ = ["PREPARATION", "sent_jpeg", "sent_size"]

PREPARATION = "dct, area, jpeg"
"""How images are scaled and encoded; another way gets another name, because captions may depend on it."""

_EXIF_ORIENTATION = 0x0112


def sent_jpeg(data: bytes, *, max_side: int, quality: int) -> bytes:
    """An image as it is sent: upright, sRGB, and of the size that `sent_size` says.

    Args:
        data: a file of any format that Lens reads.
        max_side: of the JPEG, in pixels; nothing is scaled up.
        quality: of the JPEG.

    Raises:
        ImageError: it cannot be decoded; the message is the reason.
    """
    import simplejpeg  # noqa: PLC0415

    info = header(data)
    size = sent_size(info.width, info.height, max_side)
    pixels_HW3 = _plain_jpeg(data, size) if info.format == "jpeg" else None
    if pixels_HW3 is None:
        pixels_HW3 = decode(data)
    if pixels_HW3.shape[1::-1] != size:
        pixels_HW3 = np.asarray(Image.fromarray(pixels_HW3).resize(size, Image.Resampling.BOX))
    jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HW3), quality, colorsubsampling="420")
    return jpeg


def sent_size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """The size of an image after it is scaled down to `max_side` on its longer side.

    The shorter side is whichever of the two nearest whole numbers keeps the proportions better.
    """
    if max(width, height) <= max_side:
        return width, height
    long, short = max(width, height), min(width, height)
    exact = max_side * short / long
    low, high = math.floor(exact), math.ceil(exact)

    def error(side: int) -> float:
        if width >= height:
            return 0.0 if side == 0 else abs(width / height - max_side / side)
        return abs(width / height - side / max_side)

    side = max(1, min(low, high, key=error))
    return (max_side, side) if width >= height else (side, max_side)


def _plain_jpeg(data: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """The pixels of a JPEG, at least as large as `size`: uint8 [height, width, 3]; None if it is not plain."""
    import simplejpeg  # noqa: PLC0415

    # What Pillow warns of, `header` has been told already.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        upright = image.getexif().get(_EXIF_ORIENTATION, 1) == 1
        if image.mode not in {"L", "RGB"} or "icc_profile" in image.info or not upright:
            return None
    try:
        pixels_HW3: np.ndarray = simplejpeg.decode_jpeg(data, min_width=size[0], min_height=size[1], min_factor=1)
    except ValueError:
        return None  # whether it is past mending is not decided here
    return pixels_HW3
