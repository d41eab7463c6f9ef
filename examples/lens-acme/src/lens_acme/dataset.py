"""A dataset that draws its own pictures: two colours in stripes."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lens_core.contracts import ImageRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_acme.configs import StripesConfig


class Stripes:
    """Built by Lens as `Stripes(config, base=..., seed=...)`. Two passes over it yield the same pictures."""

    def __init__(self, config: StripesConfig, *, base: str = ".", seed: int = 0):
        self.config = config
        self.seed = seed

    def __iter__(self) -> Iterator[ImageRecord]:
        for index in range(self.config.count):
            # Bytes are made late: a dataset of a million pictures costs nothing until somebody reads them.
            yield ImageRecord(
                name=f"stripes-{index:06}.png", read=functools.partial(self._draw, index), licence="CC0-1.0"
            )

    def fingerprint(self) -> str:
        return ""  # the pictures follow from the config and the seed alone

    def _draw(self, index: int) -> bytes:
        random = np.random.default_rng([self.seed, index])
        first, second = random.integers(0, 256, (2, 3), dtype=np.uint8)
        period, vertical = int(random.integers(4, 12)), bool(random.integers(2))
        band = (np.arange(self.config.size) // period) % 2 == 0
        mask_HW = np.broadcast_to(band[None, :] if vertical else band[:, None], (self.config.size, self.config.size))
        stream = io.BytesIO()
        Image.fromarray(np.where(mask_HW[..., None], first, second)).save(stream, "PNG")
        return stream.getvalue()
