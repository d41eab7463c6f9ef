"""The receipt inside an image file: where it stands in each format, and how it is read back.

PNG has text chunks for it. JPEG and WebP carry it as the comment of EXIF (`UserComment`), which editors keep that keep
anything at all. It must fit into 64 kB: that is all that a JPEG has room for.
"""

from __future__ import annotations

import io
import json
import warnings
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image

from lens_core.storage.lineage import read_receipt as read_png

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["exif_with_receipt", "read_receipt", "without_prompts"]

PROMPTS = ("prompt", "rewritten_prompt", "negative")

_MAX_EXIF = 65_000
"""Bytes; a JPEG's segment holds 65,533 with its own header."""

_UNICODE = b"UNICODE\0"
"""Begins a comment in UTF-16, in the byte order of the EXIF block; Pillow's are big-endian."""


def without_prompts(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt that tells nothing of what was asked for but its hashes."""
    return {key: value for key, value in receipt.items() if key not in PROMPTS}


def exif_with_receipt(receipt: Mapping[str, Any]) -> bytes:
    """An EXIF block with a receipt as its comment; without prompts, where they are too long for a JPEG."""
    block = _exif(receipt)
    return block if len(block) <= _MAX_EXIF else _exif(without_prompts(receipt))


def read_receipt(data: bytes) -> dict[str, Any] | None:
    """The receipt in a PNG, JPEG or WebP file, or None; a damaged one counts as none."""
    return read_png(data) or _read_exif(data)


def _exif(receipt: Mapping[str, Any]) -> bytes:
    exif = Image.Exif()
    text = json.dumps(receipt, ensure_ascii=False)
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _UNICODE + text.encode("utf-16-be")
    return exif.tobytes()


def _read_exif(data: bytes) -> dict[str, Any] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("JPEG", "WEBP")) as image:
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        text = comment.removeprefix(_UNICODE)
        # An editor that writes the block in the other byte order may or may not turn the comment round.
        receipt = json.loads(text.decode("utf-16-be" if text.startswith(b"\0") else "utf-16-le"))
    except Exception:
        return None  # strangers' files make readers raise what comes to hand
    return receipt if isinstance(receipt, dict) else None
