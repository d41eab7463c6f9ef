"""Refuses pictures by an image classifier: the models of the dataset filters, asked about what was drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_core.filters.vision.scores import LabelScore
from lens_core.images import Candidate

if TYPE_CHECKING:
    import numpy as np

    from lens_serve.safety.image_classifier.config import ImageClassifierConfig

__all__ = ["ImageClassifier"]

_REASON = "it turned out to be of a kind that is not handed out here"


class _Drawn(Candidate):
    """A picture that never was a file."""

    def __init__(self, image_HW3: np.ndarray):
        super().__init__("drawn", b"")
        self._image_HW3 = image_HW3

    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 3]."""
        return self._image_HW3


class ImageClassifier:
    """Refuses a picture whose score is above the bound; of prompts it has no opinion.

    Raises:
        ConfigError: there is no such model, or it does not know a label.
        ArtifactError: the model cannot be used.
    """

    def __init__(self, config: ImageClassifierConfig):
        self.config = config
        self._score = LabelScore(config, config.labels)

    def check_prompt(self, prompt: str) -> str | None:
        """None."""
        return None

    def check_image(self, image_HW3: np.ndarray) -> str | None:
        """A reason if the labels' probability is too large, or no number."""
        return None if self._score(_Drawn(image_HW3)) <= self.config.max else _REASON
