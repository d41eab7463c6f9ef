"""Drops images that repeat an earlier one exactly, in the file's bytes or in the pixels.

`ingest` never stores the same bytes twice, with or without this filter; this one also finds the same picture in another
container (a PNG saved again as WebP without loss), and spares the filters behind it the repetitions.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lens_core.contracts import Verdict
from lens_core.images import DECODER

if TYPE_CHECKING:
    from lens_core.contracts import Candidate
    from lens_core.filters.exact_duplicates.config import ExactDuplicatesConfig

__all__ = ["ExactDuplicates"]


class ExactDuplicates:
    """Remembers 16 bytes for each image that was kept."""

    def __init__(self, config: ExactDuplicatesConfig):
        self.config = config
        self._names: dict[bytes, str] = {}

    def check(self, candidate: Candidate) -> Verdict:
        """By a hash."""
        first = self._names.get(self._digest(candidate))
        return Verdict() if first is None else Verdict(reason=f"it has the same {self.config.of} as {first}")

    def kept(self, candidate: Candidate) -> None:
        """From now on this image is the first of its kind."""
        self._names.setdefault(self._digest(candidate), candidate.name)

    def _digest(self, candidate: Candidate) -> bytes:
        if self.config.of == "bytes":
            return hashlib.blake2b(candidate.data, digest_size=16).digest()
        return candidate.measure(f"pixel-hash {DECODER}", lambda: _hash_of_pixels(candidate))


def _hash_of_pixels(candidate: Candidate) -> bytes:
    pixels = candidate.pixels()
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return digest.digest()
