"""A captioner that needs nothing but pixels: it names a picture's shape and its main colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lens_core.contracts import CaptionOutcome
from lens_core.errors import ImageError
from lens_core.images import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_acme.configs import PaletteConfig
    from lens_core.contracts import ImageItem

COLOURS = {
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "white": (255, 255, 255),
    "red": (210, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 200),
    "purple": (130, 50, 160),
    "pink": (245, 150, 180),
    "brown": (120, 75, 40),
}


class Palette:
    """Built by Lens as `Palette(config)`. A captioner answers for every image, also for a bad one."""

    deterministic = True

    def __init__(self, config: PaletteConfig):
        self.config = config

    def caption(self, images: Sequence[ImageItem]) -> list[CaptionOutcome]:
        return [self._caption_one(item) for item in images]

    def close(self) -> None:
        pass  # nothing is held open

    def _caption_one(self, item: ImageItem) -> CaptionOutcome:
        try:
            pixels_HWC = decode(item.data)
        except ImageError as error:
            return CaptionOutcome(key=item.key, status="bad-image", detail=str(error))
        text = f"a {_shape(pixels_HWC)} picture in {self._colours(pixels_HWC)}"
        return CaptionOutcome(key=item.key, status="ok", text=text, provenance={"captioner": "acme-palette"})

    def _colours(self, pixels_HWC: np.ndarray) -> str:
        sample_PC = pixels_HWC[::4, ::4].reshape(-1, 3).astype(np.int32)
        table_KC = np.array(list(COLOURS.values()))
        nearest_P = ((sample_PC[:, None] - table_KC[None]) ** 2).sum(-1).argmin(-1)
        votes = np.bincount(nearest_P, minlength=len(COLOURS))
        order = np.argsort(-votes, kind="stable")[: self.config.colours]
        names = [list(COLOURS)[index] for index in order if votes[index]]
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _shape(pixels_HWC: np.ndarray) -> str:
    height, width = pixels_HWC.shape[:2]
    if width > 1.2 * height:
        return "wide"
    return "tall" if height > 1.2 * width else "square"
