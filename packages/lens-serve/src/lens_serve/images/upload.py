"""Pictures that clients send: bounded, and decoded by a process that may do little else.

Decoders of images are where servers get hurt: a few kilobytes claim to be terabytes of pixels, and damaged files have
found holes in every codec. Here the first bytes must be those of a PNG, JPEG or WebP; the rest is read, as that format
only, by a process that has seconds, little memory and no secrets in its environment, can open no file, and may write
only so many bytes of pixels (see `lens_serve.images.decoder`, also for what this does not keep out). It starts anew for
each picture, which takes about a tenth of a second: its processor time counts from zero.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from typing import IO

import numpy as np

from lens_core.errors import LensError
from lens_serve.images.decoder import HEAD, promised

__all__ = ["UploadError", "read_upload"]

TIMEOUT_S = 30.0
"""On the wall clock, for machines that are busy; see the decoder for its processor time."""

_KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
"""What Python may need to find its packages; no other variable of the server's is passed on."""


class UploadError(LensError):
    """A client's picture that cannot be taken; the message is for the client."""


def read_upload(data: bytes, *, max_pixels: int, max_bytes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode a client's picture. It takes a while: call it from a thread.

    Args:
        data: a PNG, JPEG or WebP file that does not move.
        max_pixels: larger pictures are refused before they are decoded.
        max_bytes: larger files are refused unread.

    Returns:
        Upright sRGB uint8 [H, W, 3], with transparency laid over white; and alpha, uint8 [H, W], if anything is
        transparent.

    Raises:
        UploadError: it is anything else; one line says what.
    """
    if len(data) > max_bytes:
        raise UploadError(f"the picture has {len(data):,} bytes; at most {max_bytes:,} are taken")
    if promised(data) is None:
        raise UploadError("the picture is no PNG, JPEG or WebP file")
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(data)
        source.seek(0)
        _decode(source, target, max_pixels)
        target.seek(0)
        return _parse(target.read(), max_pixels)


def _decode(source: IO[bytes], target: IO[bytes], max_pixels: int) -> None:
    """Run the decoder. It leads a group of processes, so that what it began ends with it when its time is over."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lens_serve.images.decoder", str(max_pixels)],
        stdin=source,
        stdout=target,
        env={name: os.environ[name] for name in _KEPT if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        failed = process.wait(TIMEOUT_S) != 0
    except subprocess.TimeoutExpired:
        with contextlib.suppress(PermissionError):  # what macOS says of a process that has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        failed = True
    if failed:
        raise UploadError("the picture cannot be decoded within the time and memory that it may take")


def _parse(answer: bytes, max_pixels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """What the decoder wrote. The picture may have taken it over, so its numbers are checked."""
    confused = UploadError("the picture cannot be used: it has confused its decoder")
    if len(answer) < HEAD.size:
        raise confused
    channels, height, width = HEAD.unpack_from(answer)
    body = memoryview(answer)[HEAD.size :]
    if channels == 0:
        raise UploadError(f"the picture cannot be used: {bytes(body).decode(errors='replace')}")
    if channels not in {3, 4} or not 0 < height * width <= max_pixels or len(body) != height * width * channels:
        raise confused
    pixels_HWC = np.frombuffer(body, np.uint8).reshape(height, width, channels)
    return pixels_HWC[..., :3].copy(), pixels_HWC[..., 3].copy() if channels == 4 else None
