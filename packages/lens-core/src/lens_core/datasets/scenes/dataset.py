"""The procedural scenes as a source of images."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING

from PIL import Image

from lens_core.contracts import ImageRecord
from lens_core.datasets.scenes.render import render
from lens_core.datasets.scenes.world import Scene, sample_scene

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_core.datasets.scenes.config import ScenesConfig

__all__ = ["Scenes"]


class Scenes:
    """Renders scene number 0, 1, 2, … as PNG; the scene graph travels as `metadata["scene"]`."""

    def __init__(self, config: ScenesConfig, *, base: str = ".", seed: int = 0):
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        return self.config.count

    def __iter__(self) -> Iterator[ImageRecord]:
        for index in range(self.config.count):
            scene = sample_scene(self.seed, index, split=self.config.split)
            yield ImageRecord(
                name=f"scene-{index:08d}",
                read=partial(_png, scene, self.config.size),
                licence="CC0-1.0",
                metadata={"scene": scene.to_json()},
            )

    def fingerprint(self) -> str:
        """The config and the seed say all."""
        return ""


def _png(scene: Scene, size: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(render(scene, size)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
