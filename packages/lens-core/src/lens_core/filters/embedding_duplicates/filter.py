"""Drops images that a vision model takes for an earlier one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lens_core.contracts import Verdict
from lens_core.filters.embedding_duplicates.index import make_index
from lens_core.filters.vision.models import load_embedder
from lens_core.images import DECODER

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.embedding_duplicates.config import EmbeddingDuplicatesConfig
    from lens_core.filters.embedding_duplicates.index import CosineIndex

__all__ = ["EmbeddingDuplicates"]


class EmbeddingDuplicates:
    """Step 9 of the paper's cleaning: of images with nearly the same embedding, the first one stays."""

    def __init__(self, config: EmbeddingDuplicatesConfig):
        self.config = config
        self._model = load_embedder(config.model, asked_by=config.type, device=config.device)
        self._names: list[str] = []
        # Made with the first vector, whose size it needs; without its library it must fail before any work is done.
        self._index: CosineIndex = make_index(config.search, 1)

    def check(self, candidate: Candidate) -> Verdict:
        """By the cosine to the nearest image that was kept; the first image has no score."""
        found = self._index.nearest(self._vector(candidate)) if self._names else None
        if found is None:
            return Verdict()
        number, cosine = found
        most = self.config.max
        if cosine <= most:
            return Verdict(score=cosine)
        reason = f"it means the same as {self._names[number]} (cosine {cosine:.4f} > {most:g})"
        return Verdict(reason=reason, score=cosine, threshold=most)

    def kept(self, candidate: Candidate) -> None:
        """From now on others must not be like this one."""
        vector = self._vector(candidate)
        if not self._names:
            self._index = make_index(self.config.search, len(vector))
        self._index.add(vector)
        self._names.append(candidate.name)

    def _vector(self, candidate: Candidate) -> np.ndarray:
        name = f"embedding {self._model.hash} {DECODER}"
        stored = candidate.measure(name, lambda: self._model(candidate.pixels()).astype("<f4").tobytes())
        return np.frombuffer(stored, "<f4").astype(np.float32)
