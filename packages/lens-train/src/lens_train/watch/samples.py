"""Pictures of the same prompts from the same noise, as a grid every so many steps."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lens_core.diffusion.text_to_image import Request
from lens_train.checkpoint.writing import writing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lens_train.watch.config import SamplesConfig
    from lens_train.watch.drawing import Drawer

__all__ = ["SAMPLES", "Samples", "grid_of"]

SAMPLES = "samples"
"""The folder of grids, beside the metrics and in the model folder; a grid's name is its step."""


class Samples:
    """Draws the prompts and writes the grid.

    Args:
        draw: by the model in training.
        config: the prompts, and how often.
        folder: where the folder of grids lies.
        seed: of the noise.
    """

    def __init__(self, draw: Drawer, config: SamplesConfig, folder: Path, *, seed: int):
        self.every = config.every
        self._draw = draw
        self._folder = folder / SAMPLES
        height, width = draw.image_size
        self._requests = [
            Request(prompt=prompt, height=height, width=width, seed=seed, index=number)
            for number, prompt in enumerate(config.prompts)
        ]

    def look(self, step: int) -> dict[str, float]:
        """Draw; there is nothing to put into numbers.

        Raises:
            StorageError: the grid cannot be written.
        """
        images = self._draw(self._requests)
        if self._draw.world.is_main:
            stream = io.BytesIO()
            Image.fromarray(grid_of(images)).save(stream, "PNG")
            file = self._folder / f"{step:07d}.png"
            with writing(file):
                self._folder.mkdir(exist_ok=True)
                file.write_bytes(stream.getvalue())
        return {}

    def judge(self, seen: Mapping[str, float]) -> None:
        """Nothing is asked of pictures."""


def grid_of(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures [H, W, 3] of one size in rows, about as many as columns; what is left of the last row is white."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    cells = [*images, *[np.full_like(images[0], 255)] * (rows * columns - len(images))]
    return np.concatenate([np.concatenate(cells[row * columns : (row + 1) * columns], axis=1) for row in range(rows)])
