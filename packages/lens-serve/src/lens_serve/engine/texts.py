"""Features of prompts that were encoded lately, as many as fit into so many bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor

__all__ = ["Texts"]

Features = list["Tensor"]
"""Of one text: a tensor [T, E] per layer."""


class Texts:
    """Remembers the features of prompts and their negatives; what was asked for least recently is forgotten first.

    Args:
        max_bytes: of the features that are kept.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Features, Features | None]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[Features, Features | None] | None:
        """What was put there, if it is still known."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, text: Features, negative: Features | None) -> tuple[Features, Features | None]:
        """Remember copies, and return them: an encoder's own are often views of a batch, which they keep alive."""
        self.drop(key)
        kept = [layer.clone() for layer in text], None if negative is None else [layer.clone() for layer in negative]
        self._kept[key] = kept
        self.bytes += _bytes(kept)
        while self.bytes > self.max_bytes:
            self.drop(next(iter(self._kept)))
        return kept

    def drop(self, key: Hashable) -> None:
        """Forget one, if it is known."""
        if key in self._kept:
            self.bytes -= _bytes(self._kept.pop(key))


def _bytes(kept: tuple[Features, Features | None]) -> int:
    return sum(layer.nbytes for layers in kept for layer in layers or [])
