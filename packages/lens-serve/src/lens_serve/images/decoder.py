"""The process that decodes one picture: from standard input to standard output, and then it ends.

Everything is imported first; then it gives up, for good, memory beyond a bound, processor time, files that are larger
than the pixels may be, the right to open any further file or socket, to start another process (unless it is root, whom
that does not bind), and, on Linux, to gain rights by running a program. Pillow then opens the format that the first
bytes promise, and no other.

This is a seat belt, not a sandbox: a decoder that has been taken over is still a process of the server's user. It can
send signals to the server's other processes, and write over what its own descriptors lead to.

    python -m lens_serve.images.decoder MAX_PIXELS < picture > answer

The answer is a `HEAD`: channels, height, width; then the pixels [H, W, C], alpha last. Channels 0: the reason, as text.
"""

from __future__ import annotations

import ctypes
import io
import resource
import struct
import sys

import numpy as np
from PIL import Image, ImageOps

from lens_core.errors import ImageError
from lens_core.images import decode, header, is_animated

__all__ = ["HEAD", "main", "promised"]

HEAD = struct.Struct(">BII")

CPU_S = 10
"""A picture of 16 million pixels takes about one."""

_PR_SET_NO_NEW_PRIVS = 38

_BASE_BYTES = 1 << 30
"""Address space of Python and its libraries, most of which is never touched."""

_PIXEL_BYTES = 64
"""Address space of a pixel while it is decoded: 16-bit samples become float64 on their way."""


def main() -> None:
    """Decode standard input."""
    max_pixels = int(sys.argv[1])
    Image.init()  # imports its readers, which it would otherwise do when it first needs them
    _give_up(max_pixels)
    _answer(max_pixels)


def promised(data: bytes) -> str | None:
    """The format, by Pillow's name, that the first bytes promise; None: none of those that are taken."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else None


def _answer(max_pixels: int) -> None:
    data = sys.stdin.buffer.read()
    _open_only(promised(data))
    try:
        pixels_HWC = _decoded(data, max_pixels)
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
        resource.RLIMIT_NPROC: 0,
    }
    if sys.platform == "linux":  # elsewhere it is not enforced, or counts what is shared
        limits[resource.RLIMIT_AS] = _BASE_BYTES + _PIXEL_BYTES * max_pixels
    for what, limit in limits.items():
        resource.setrlimit(what, (limit, limit))
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError("the kernel does not keep this process from gaining rights")


def _open_only(format: str | None) -> None:
    """Of all that Pillow can open; some readers look beyond the first bytes, and would take a JPEG for theirs."""
    for name, (reader, _) in list(Image.OPEN.items()):
        if name != format:
            Image.OPEN[name] = reader, lambda prefix: False


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
