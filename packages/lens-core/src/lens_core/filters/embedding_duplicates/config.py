"""Settings of the filter of duplicates by embedding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.filters.vision.config import VisionConfig

__all__ = ["EmbeddingDuplicatesConfig"]


class EmbeddingDuplicatesConfig(VisionConfig):
    """Drops images whose embedding is nearly that of an earlier one; you bring the model, such as a CLIP."""

    type: Literal["embedding-duplicates"] = "embedding-duplicates"
    max: float = Field(0.985, gt=-1, lt=1, description="Largest cosine that is kept (the paper's is 0.985).")
    search: Literal["exact", "faiss", "faiss-hnsw"] = Field(
        "exact",
        description="How the nearest is found: exact (NumPy), faiss (as exact, faster), or faiss-hnsw (for millions of "
        "images; it misses a few).",
    )
