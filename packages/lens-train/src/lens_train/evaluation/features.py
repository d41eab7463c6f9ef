"""From a picture to the numbers that it is compared by: small pixels, or what a vision model sees."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lens_core.filters.vision.models import load_embedder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    FeaturesOf = Callable[[NDArray[np.uint8]], NDArray[np.float64]]

__all__ = ["PIXELS", "SIDE", "features_by"]

PIXELS = "pixels"
SIDE = 8


def features_by(name: str, *, device: str, asked_by: str) -> FeaturesOf:
    """What turns uint8 [height, width, 3] into float64 [features].

    Pixels are the means of a grid of 8x8, from 0 to 1. A model's features have the length that makes their mean square
    1, so that the kernel of KID, which divides by their number, sees the cosine.

    Args:
        name: `pixels`, or a folder of a vision model.
        device: where the model runs.
        asked_by: for messages.

    Raises:
        LensError: the folder is missing or holds no vision model.
    """
    if name == PIXELS:
        return _small_pixels
    embed = load_embedder(name, asked_by=asked_by, device=device)

    def features(image_HW3: NDArray[np.uint8]) -> NDArray[np.float64]:
        unit = embed(image_HW3).astype(np.float64)
        return unit * math.sqrt(len(unit))

    return features


def _small_pixels(image_HW3: NDArray[np.uint8]) -> NDArray[np.float64]:
    small = Image.fromarray(image_HW3).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float64).ravel() / 255
