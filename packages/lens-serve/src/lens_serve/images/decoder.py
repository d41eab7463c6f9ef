"""The process that decodes one picture: from standard input to standard output, and then it ends.

Everything is imported first; then it gives up, for good, memory beyond a bound, processor time, files that are larger
than the pixels may be, and the right to open any further file or socket. What holds after that holds for a decoder
that has been taken over as well.

    python -m lens_serve.images.decoder MAX_PIXELS < picture > answer

The answer is a `HEAD`: channels, height, width; then the pixels [H, W, C], alpha last. Channels 0: the reason, as text.
"""

from __future__ import annotations

import io
import resource
import struct
import sys

import numpy as np
from PIL import Image, ImageOps

from lens_core.errors import ImageError
from lens_core.images import decode, header, is_animated

__all__ = ["HEAD", "main"]

HEAD = struct.Struct(">BII")

CPU_S = 10
"""A picture of 16 million pixels takes about one."""

_BASE_BYTES = 1 << 30
"""Address space of Python and its libraries, most of which is never touched."""

_PIXEL_BYTES = 64
"""Address space of a pixel while it is decoded: 16-bit samples become float64 on their way."""


def main() -> None:
    """Decode standard input."""
    max_pixels = int(sys.argv[1])
    Image.init()  # imports its readers, which it would otherwise do when it first needs them
    _give_up(max_pixels)
    try:
        pixels_HWC = _decoded(sys.stdin.buffer.read(), max_pixels)
    except ImageError as error:
        sys.stdout.buffer.write(HEAD.pack(0, 0, 0) + str(error).encode()[:300])
        return
    height, width, channels = pixels_HWC.shape
    sys.stdout.buffer.write(HEAD.pack(channels, height, width))
    sys.stdout.buffer.write(pixels_HWC.data)


def _give_up(max_pixels: int) -> None:
    limits = {
        resource.RLIMIT_CPU: CPU_S,
        resource.RLIMIT_FSIZE: HEAD.size + 4 * max_pixels,
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # elsewhere it is not enforced, or counts what is shared
        limits[resource.RLIMIT_AS] = _BASE_BYTES + _PIXEL_BYTES * max_pixels
    for what, limit in limits.items():
        resource.setrlimit(what, (limit, limit))


def _decoded(data: bytes, max_pixels: int) -> np.ndarray:
    info = header(data)
    if info.width * info.height > max_pixels:
        raise ImageError(f"it has {info.width}x{info.height} pixels; at most {max_pixels:,} are taken")
    if is_animated(data):
        raise ImageError("it is animated")
    pixels_HW3 = decode(data)
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        if not image.has_transparency_data:
            return pixels_HW3
        alpha = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    alpha_HW = np.asarray(alpha)
    return pixels_HW3 if (alpha_HW == 255).all() else np.dstack([pixels_HW3, alpha_HW])


if __name__ == "__main__":
    main()
