"""From pixels back to the scene graph, by least squares against every object that the renderer can draw.

The background is the nearest plain colour to the image's border. In each quadrant, every mask (shape, size, offset) in
every colour is a candidate; the one that leaves the least squared error wins, if it explains enough of what is there.
What stands out from the background but resembles no object counts as an unclear one.

Suffixes: K candidate masks, Q pixels of a quadrant (flat), C colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lens_core.datasets.scenes.render import mask
from lens_core.datasets.scenes.world import BACKGROUNDS, COLOURS, JITTER, QUADRANTS, SHAPES, SIZES, Scene, SceneObject

__all__ = ["Detection", "detect"]

MIN_COVER = 0.3
"""Below this share of the squared deviation from the background that the faintest smallest object has, a quadrant is
empty."""

MIN_EXPLAINED = 0.7
"""Share of a quadrant's squared deviation that the best candidate must explain to count as an object."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What is in an image: the scene, and how many quadrants hold something that is no object."""

    scene: Scene
    unclear: int


def detect(image_HW3: np.ndarray) -> Detection:
    """Recover the scene of a square uint8 image [H, H, 3], H a multiple of 16."""
    size = len(image_HW3)
    half = size // 2
    pixels = image_HW3.astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    middle = np.median(border, axis=0)
    background = min(BACKGROUNDS, key=lambda name: float(((middle - np.array(BACKGROUNDS[name])) ** 2).sum()))
    plain = np.array(BACKGROUNDS[background], dtype=np.float32)
    names, masks_KQ, area_K = _candidates(half)
    colour_C3 = np.array(list(COLOURS.values()), dtype=np.float32) - plain
    power_C = (colour_C3**2).sum(-1)
    least = float(power_C.min() * area_K.min())
    objects, unclear = [], 0
    for number, quadrant in enumerate(QUADRANTS):
        row, column = divmod(number, 2)
        window = pixels[row * half : row * half + half, column * half : column * half + half].reshape(-1, 3) - plain
        energy = float((window**2).sum())
        if energy < MIN_COVER * least:
            continue
        # |w - m·c|² = |w|² - 2·m·(w·c) + |m|²·|c|²: what a candidate explains is the rest, negated.
        gain_KC = 2 * masks_KQ @ (window @ colour_C3.T) - area_K[:, None] * power_C
        best = int(gain_KC.argmax())
        k, c = divmod(best, len(COLOURS))
        if gain_KC[k, c] < MIN_EXPLAINED * energy:
            unclear += 1
            continue
        shape, extent, dx, dy = names[k]
        objects.append(SceneObject(colour=list(COLOURS)[c], shape=shape, size=extent, quadrant=quadrant, dx=dx, dy=dy))
    return Detection(scene=Scene(background=background, objects=tuple(objects)), unclear=unclear)


@lru_cache(maxsize=4)
def _candidates(side: int) -> tuple[list[tuple[str, str, int, int]], np.ndarray, np.ndarray]:
    # Every second offset is enough: the next one is at most a quarter of a pixel away at 32 pixels.
    offsets = range(-JITTER, JITTER + 1, 2)
    names = [(shape, size, dx, dy) for shape in SHAPES for size in SIZES for dx in offsets for dy in offsets]
    masks_KQ = np.stack([mask(*name, side).ravel() for name in names])
    return names, masks_KQ, (masks_KQ**2).sum(-1)
