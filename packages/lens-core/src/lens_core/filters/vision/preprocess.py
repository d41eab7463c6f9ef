"""Pixels as a model wants them, by its preprocessor_config.json: scale, cut, normalise. Pillow and NumPy, nothing else.

Hugging Face's own processors come in several generations, which differ by a level or two and of which some need
torchvision. Here all models, and ONNX files too, share one: that of the processors built on Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lens_core.errors import ArtifactError
from lens_core.filters.vision.models import read_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Preprocessor"]

FILE = "preprocessor_config.json"
_UNKNOWN = ("crop_pct", "do_pad", "do_flip_channel_order", "do_color_quantize")


@dataclass(frozen=True, kw_only=True)
class Preprocessor:
    """`size` and `crop` are (height, width); a `size` of (shortest, None) keeps the proportions."""

    size: tuple[int, int | None] | None
    crop: tuple[int, int] | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_folder(cls, folder: Path) -> Preprocessor:
        """Read the settings beside a model.

        Raises:
            ArtifactError: the file is missing, damaged, or asks for something that is not known here.
        """
        data = read_json(folder / FILE)
        unknown = [name for name in _UNKNOWN if data.get(name)]
        if unknown:
            raise ArtifactError(f"{folder / FILE} asks for {unknown[0]}, which Lens does not do")
        try:
            normalise = data.get("do_normalize", True)
            return cls(
                size=_size(data["size"]) if data.get("do_resize", True) else None,
                crop=_crop(data["crop_size"]) if data.get("do_center_crop", False) else None,
                resample=int(data.get("resample", Image.Resampling.BILINEAR)),
                scale=float(data.get("rescale_factor", 1 / 255)) if data.get("do_rescale", True) else 1.0,
                mean=tuple(map(float, data["image_mean"])) if normalise else (0.0, 0.0, 0.0),
                std=tuple(map(float, data["image_std"])) if normalise else (1.0, 1.0, 1.0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{folder / FILE} is no image processor's: {type(error).__name__}: {error}") from error

    def __call__(self, pixels_HW3: np.ndarray) -> np.ndarray:
        """float32 [1, 3, height, width]."""
        image = Image.fromarray(pixels_HW3)
        if self.size is not None:
            image = image.resize(self._scaled(image.width, image.height), self.resample)
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        values_HW3: np.ndarray = np.asarray(image, np.float32) * np.float32(self.scale)
        values_HW3 = (values_HW3 - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values_HW3.transpose(2, 0, 1)[None])

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        assert self.size is not None
        first, second = self.size
        if second is not None:
            return second, first
        if width <= height:
            return first, int(first * height / width)
        return int(first * width / height), first


def _size(value: Any) -> tuple[int, int | None]:
    if isinstance(value, int):
        return value, value
    if "shortest_edge" in value:
        return int(value["shortest_edge"]), None
    return int(value["height"]), int(value["width"])


def _crop(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value["height"]), int(value["width"])
