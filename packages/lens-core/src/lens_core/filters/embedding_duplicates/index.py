"""Nearest neighbours by cosine among vectors of length one, which arrive one by one.

The exact search is a matrix product and needs nothing but NumPy. FAISS does the same on several cores, and its HNSW
graph looks at a few hundred vectors instead of all.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np

from lens_core.errors import MissingExtraError
from lens_core.specs import pip_line

__all__ = ["CosineIndex", "ExactIndex", "FaissIndex", "make_index"]

HNSW_LINKS = 32
HNSW_LOOKS = 128


class CosineIndex(Protocol):
    """Vectors by number, in the order in which they were added."""

    def add(self, vector: np.ndarray) -> None:
        """Remember a vector."""
        ...

    def nearest(self, vector: np.ndarray) -> tuple[int, float] | None:
        """Number and cosine of the nearest; None if there is no vector yet."""
        ...


def make_index(search: str, size: int) -> CosineIndex:
    """The index that does a search; raises `MissingExtraError` without FAISS."""
    return ExactIndex(size) if search == "exact" else FaissIndex(size, graph=search == "faiss-hnsw")


class ExactIndex:
    """All vectors in one array."""

    def __init__(self, size: int):
        self._vectors = np.empty((1024, size), np.float32)
        self._count = 0

    def add(self, vector: np.ndarray) -> None:
        """Remember a vector."""
        if self._count == len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
        self._vectors[self._count] = vector
        self._count += 1

    def nearest(self, vector: np.ndarray) -> tuple[int, float] | None:
        """The first of the nearest."""
        if not self._count:
            return None
        cosines = self._vectors[: self._count] @ vector
        best = int(cosines.argmax())
        return best, float(cosines[best])


class FaissIndex:
    """An index of FAISS over inner products."""

    def __init__(self, size: int, *, graph: bool):
        try:
            faiss: Any = importlib.import_module("faiss")
        except ImportError as error:
            hint = pip_line("lens-core[faiss]")
            raise MissingExtraError(
                f"embedding-duplicates needs the library 'faiss', which is not installed; install it with: {hint}, "
                "or use 'search: exact'"
            ) from error
        if graph:
            self._index = faiss.IndexHNSWFlat(size, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efSearch = HNSW_LOOKS
        else:
            self._index = faiss.IndexFlatIP(size)

    def add(self, vector: np.ndarray) -> None:
        """Remember a vector."""
        self._index.add(vector[None])

    def nearest(self, vector: np.ndarray) -> tuple[int, float] | None:
        """One of the nearest."""
        if not self._index.ntotal:
            return None
        cosines, numbers = self._index.search(vector[None], 1)
        return (int(numbers[0, 0]), float(cosines[0, 0])) if numbers[0, 0] >= 0 else None
