"""Captions brought to their images: keys are matched in memory, and the texts wait in a file.

What is held is some 60 bytes an image and 20 a caption, whatever is said in it. Suffixes: N images, C captions.
"""

from __future__ import annotations

import mmap
import tempfile
from array import array
from itertools import islice
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from lens_train.checkpoint.writing import writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Joined"]

_AT_ONCE = 8192


class Joined:
    """The captions of each image, in the order in which they come.

    Args:
        keys_N: sha256 of each image's bytes, as bytes; no two are equal.
        captions: (key, text), the key in hex; those of other images are passed over.
        folder: for the file of texts, which has no name there and goes when this does.
        on_part: called now and then.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """

    def __init__(
        self,
        keys_N: NDArray[np.bytes_],
        captions: Iterable[tuple[str, str]],
        folder: Path,
        on_part: Callable[[], None] = lambda: None,
    ):
        self.captions = 0
        """How many came, those of other images too."""
        numbers, sizes = array("I"), array("I")
        order_N = np.argsort(keys_N)
        left = iter(captions)
        with writing(folder), _texts_in(folder) as file:
            while some := list(islice(left, _AT_ONCE)):
                self.captions += len(some)
                for number, (_, text) in zip(_places(keys_N, order_N, some), some, strict=True):
                    if number >= 0:
                        data = text.encode()
                        file.write(data)
                        numbers.append(number)
                        sizes.append(len(data))
                on_part()
            file.flush()
            self._texts = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b""
        numbers_C, sizes_C = np.frombuffer(numbers, np.uint32), np.frombuffer(sizes, np.uint32)
        self._sizes_C = sizes_C
        self._starts_C = np.cumsum(sizes_C, dtype=np.int64) - sizes_C
        self._by_image_C = np.argsort(numbers_C, kind="stable")
        self.counts_N: NDArray[np.int64] = np.bincount(numbers_C, minlength=len(keys_N))
        """How many captions each image has."""
        self._first_N = np.cumsum(self.counts_N) - self.counts_N

    def texts(self, number: int) -> list[str]:
        """The captions of an image."""
        first = self._first_N[number]
        rows = self._by_image_C[first : first + self.counts_N[number]]
        places = zip(self._starts_C[rows].tolist(), self._sizes_C[rows].tolist(), strict=True)
        return [self._texts[start : start + size].decode() for start, size in places]


def _texts_in(folder: Path) -> IO[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


def _places(keys_N: NDArray[np.bytes_], order_N: NDArray[Any], captions: list[tuple[str, str]]) -> list[int]:
    """The number of each caption's image; -1 where there is none."""
    if not len(keys_N):
        return [-1] * len(captions)
    wanted = np.array([_bytes(key) for key, _ in captions], keys_N.dtype)
    found = order_N[np.minimum(np.searchsorted(keys_N, wanted, sorter=order_N), len(keys_N) - 1)]
    places: list[int] = np.where(keys_N[found] == wanted, found, -1).tolist()
    return places


def _bytes(key: str) -> bytes:
    """A key as bytes; empty, like that of no image, if it is no sha256."""
    try:
        data = bytes.fromhex(key)
    except ValueError:
        return b""
    return data if len(data) == 32 else b""
