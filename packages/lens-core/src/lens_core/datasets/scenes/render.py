"""Scenes to pixels: antialiased by exact 4×4 supersampling, and cheap, because each object's mask is made once.

Suffixes: H and W pixels, Q pixels of a quadrant's side.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lens_core.datasets.scenes.world import BACKGROUNDS, COLOURS, SIZES, Scene

__all__ = ["mask", "render"]

_SAMPLES = 4


def render(scene: Scene, size: int) -> np.ndarray:
    """The scene as uint8 [size, size, 3]."""
    image_HW3 = np.empty((size, size, 3), dtype=np.float32)
    image_HW3[:] = BACKGROUNDS[scene.background]
    half = size // 2
    for item in scene.objects:
        window = image_HW3[item.row * half : item.row * half + half, item.column * half : item.column * half + half]
        alpha_QQ1 = mask(item.shape, item.size, item.dx, item.dy, half)[:, :, None]
        window += alpha_QQ1 * (np.array(COLOURS[item.colour], dtype=np.float32) - window)
    return np.rint(image_HW3).astype(np.uint8)


@lru_cache(maxsize=4096)
def mask(shape: str, size: str, dx: int, dy: int, side: int) -> np.ndarray:
    """How much of each pixel of a quadrant an object covers: float32 [side, side] in 0…1.

    Args:
        shape: see `world.SHAPES`.
        size: see `world.SIZES`.
        dx: offset from the quadrant's middle to the right, in 128ths of the image's side.
        dy: offset downward, likewise.
        side: the quadrant's side in pixels, half the image's.
    """
    radius = SIZES[size] * 2 * side
    axis = (np.arange(side * _SAMPLES) + 0.5) / _SAMPLES - side / 2
    x = axis[None, :] - dx * 2 * side / 128
    y = axis[:, None] - dy * 2 * side / 128
    if shape == "circle":
        inside = x**2 + y**2 <= (0.95 * radius) ** 2
    elif shape == "square":
        inside = np.maximum(abs(x), abs(y)) <= 0.85 * radius
    elif shape == "triangle":
        inside = (y <= 0.8 * radius) & (y >= 1.8 * abs(x) - radius)
    else:
        across, along = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
        inside = (across <= 0.33 * radius) & (along <= radius)
    covered: np.ndarray = inside.reshape(side, _SAMPLES, side, _SAMPLES).mean(axis=(1, 3), dtype=np.float32)
    covered.setflags(write=False)
    return covered
