"""What captions of a run have in common, noticed while it runs.

One long caption for two images that look different is no coincidence, and neither is a sentence that stands in many.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from typing import TYPE_CHECKING

from lens_caption.quality.config import SharedSentenceGate
from lens_caption.quality.gates import countable_sentences
from lens_caption.quality.looks import look_of
from lens_caption.quality.repeats import digest_of
from lens_caption.quality.text import normal
from lens_core.errors import ImageError
from lens_core.images import decode

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RepeatWatch", "SentenceWatch"]


class RepeatWatch:
    """Notices when one long caption comes for images that look different.

    Only images whose captions repeat are opened, and only the latest captions are remembered: servers that mistake one
    image for another mistake it for one that they have just seen.

    Args:
        image_of: the bytes of an image by its key.
        min_words: shorter captions repeat by right.
        min_bits: differing bits of 64 from which two images look different.
        window: captions that are remembered.
    """

    def __init__(self, image_of: Callable[[str], bytes], *, min_words: int, min_bits: int, window: int = 50_000):
        self._image_of, self._min_words, self._min_bits, self._window = image_of, min_words, min_bits, window
        self._keys: dict[bytes, str] = {}

    def add(self, key: str, text: str) -> str | None:
        """Note a caption; returns the key of an image that looks different and has the same one, or None."""
        wording = normal(text)
        if wording.count(" ") + 1 < self._min_words:
            return None
        digest = hashlib.blake2b(wording.encode(), digest_size=12).digest()
        other = self._keys.pop(digest, None)
        self._keys[digest] = key
        if len(self._keys) > self._window:
            del self._keys[next(iter(self._keys))]
        return other if other not in {None, key} and self._differ(key, str(other)) else None

    def _differ(self, key: str, other: str) -> bool:
        try:
            look, seen = (look_of(decode(self._image_of(name))) for name in (key, other))
        except ImageError:
            return False  # each has a caption, so that it could be decoded once: not what is asked here
        return look.differs(seen, min_bits=self._min_bits)


class SentenceWatch:
    """Notices when one sentence stands in many of the latest captions.

    Args:
        share: of the window that is too much.
        min_words: shorter sentences are shared by chance.
        window: captions that count as the latest.
    """

    def __init__(self, *, share: float, min_words: int = 8, window: int = 1000):
        self._gate = SharedSentenceGate(min_words=min_words)
        self._limit = share * window
        self._latest: deque[tuple[str, frozenset[int]]] = deque(maxlen=window)
        self._counts: Counter[int] = Counter()
        self._known: set[int] = set()

    def add(self, key: str, text: str) -> tuple[str, list[str]] | None:
        """Note a caption; returns a sentence that too many share, and the images that have it, or None.

        Of a sentence that was told before only the newest image is told.
        """
        found = {digest_of(plain): sentence for plain, sentence in countable_sentences(text, self._gate).items()}
        if len(self._latest) == self._latest.maxlen:
            self._counts.subtract(self._latest[0][1])
            for digest in self._latest[0][1]:
                if self._counts[digest] <= 0:
                    del self._counts[digest]
        self._latest.append((key, frozenset(found)))
        self._counts.update(found.keys())
        for digest, sentence in found.items():
            if digest in self._known:
                return sentence, [key]
            if self._counts[digest] >= self._limit:
                self._known.add(digest)
                return sentence, [name for name, digests in self._latest if digest in digests]
        return None
