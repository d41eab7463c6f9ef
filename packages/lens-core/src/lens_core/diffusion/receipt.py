"""Receipts: a picture carries how it was made, so that it can be made again and traced."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lens_core.storage.lineage import RECEIPT_KEYWORD

if TYPE_CHECKING:
    import numpy as np

__all__ = ["png_with_receipt"]


def png_with_receipt(image_HW3: np.ndarray, receipt: dict[str, Any]) -> bytes:
    """PNG bytes of a uint8 [H, W, 3] image that carry how it was made, as a JSON text chunk."""
    info = PngInfo()
    info.add_itxt(RECEIPT_KEYWORD, json.dumps(receipt, ensure_ascii=False))
    stream = io.BytesIO()
    Image.fromarray(image_HW3).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()
