"""From pixels to the bytes of a file, on a few threads of their own: the event loop must not wait for a deflate.

numpy, isal, Pillow and the signer all let go of the interpreter while they work, so that threads are enough.
"""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from lens_serve.images.metadata import exif_with_receipt, without_prompts
from lens_serve.images.png import encode_png
from lens_serve.images.sign import Signer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from lens_serve.config import OutputSettings

__all__ = ["MIME_TYPES", "Encoders", "ImageFormat", "encode_image"]

ImageFormat = Literal["png", "jpeg", "webp"]

MIME_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_FULL_COLOUR = 90
"""From this quality on, a JPEG keeps colour at full resolution; below, at half."""

_WEBP_METHOD = 2
"""Of 0 to 6. Pillow's 4 takes twice as long, for files of the same size."""


class Encoders:
    """Makes files of pictures: encoded, with their receipts, and signed if that is configured.

    Args:
        settings: whether prompts may stand in a receipt, what to sign with, and the number of threads.

    Raises:
        ConfigError: the certificate or key cannot be signed with.
        MissingExtraError: something is to be signed, and the library is missing.
    """

    def __init__(self, settings: OutputSettings):
        self._prompts = settings.prompt_in_image
        self._signer = Signer.of(settings)
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="encode")

    async def encode(
        self,
        image_HW3: np.ndarray,
        *,
        format: ImageFormat,
        compression: int | None,
        receipt: Mapping[str, Any],
        from_picture: bool,
    ) -> bytes:
        """The file of a picture.

        Args:
            image_HW3: uint8.
            format: of the file.
            compression: OpenAI's `output_compression`, the quality of a JPEG or WebP from 0 to 100, which by default it
                is; a PNG has none.
            receipt: how the picture was made.
            from_picture: whether somebody's picture was drawn on, which a signature says.

        Raises:
            SignError: it cannot be signed, because the certificate has expired for instance.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, self._encode, image_HW3, format, compression, receipt, from_picture
        )

    def close(self) -> None:
        """End the threads, after what they are at."""
        self._threads.shutdown(cancel_futures=True)

    def _encode(
        self,
        image_HW3: np.ndarray,
        format: ImageFormat,
        compression: int | None,
        receipt: Mapping[str, Any],
        from_picture: bool,
    ) -> bytes:
        shown = receipt if self._prompts else without_prompts(receipt)
        data = encode_image(
            image_HW3, format=format, quality=100 if compression is None else compression, receipt=shown
        )
        return self._signer.sign(data, MIME_TYPES[format], from_picture=from_picture) if self._signer else data


def encode_image(
    image_HW3: np.ndarray, *, format: ImageFormat, quality: int = 100, receipt: Mapping[str, Any] | None = None
) -> bytes:
    """An unsigned file of a uint8 [H, W, 3] image. Where pixels are lost, the receipt says by which format and quality.

    Args:
        image_HW3: uint8.
        format: of the file.
        quality: 0 to 100, of a JPEG or WebP.
        receipt: how the picture was made.
    """
    if format == "png":
        return encode_png(image_HW3, receipt)
    exif = exif_with_receipt({**receipt, "format": format, "quality": quality}) if receipt is not None else b""
    options: dict[str, Any] = {"method": _WEBP_METHOD}
    if format == "jpeg":
        options = {"subsampling": "4:4:4" if quality >= _FULL_COLOUR else "4:2:0"}
    stream = io.BytesIO()
    Image.fromarray(image_HW3).save(stream, format, quality=quality, exif=exif, **options)
    return stream.getvalue()
