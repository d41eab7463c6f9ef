"""Captions by rule, from the scene graph that travels with each procedural image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.contracts import CaptionOutcome, ImageItem
from lens_core.datasets.scenes.language import LANGUAGE_VERSION, describe
from lens_core.datasets.scenes.world import Scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_caption.captioners.scene_graph.config import SceneGraphConfig

__all__ = ["SceneGraphCaptioner"]


class SceneGraphCaptioner:
    """Words the scene graph of each image in one style."""

    deterministic = True

    def __init__(self, config: SceneGraphConfig):
        self.config = config

    def caption(self, images: Sequence[ImageItem]) -> list[CaptionOutcome]:
        """One outcome per image; an image without a scene graph is a bad image."""
        return [self._one(item) for item in images]

    def close(self) -> None:
        """There is nothing to release."""

    def _one(self, item: ImageItem) -> CaptionOutcome:
        try:
            scene = Scene.from_json(item.metadata["scene"])
        except KeyError:
            detail = "it has no scene graph; only images of the dataset 'scenes' have one"
            return CaptionOutcome(key=item.key, status="bad-image", detail=detail)
        except ValueError as error:
            return CaptionOutcome(key=item.key, status="bad-image", detail=str(error))
        return CaptionOutcome(
            key=item.key,
            status="ok",
            text=describe(scene, self.config.style, seed=self.config.seed, key=item.key),
            provenance={"captioner": "scene-graph", "style": self.config.style, "language": LANGUAGE_VERSION},
        )
