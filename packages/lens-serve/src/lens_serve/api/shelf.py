"""What is kept for a while and forgotten then: by age, by number, and by size.

Where there is too much, whoever has most of it loses his oldest: nobody can push out what others keep.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

__all__ = ["DAY_S", "Keepable", "Shelf"]

DAY_S = 24 * 3600.0


class Keepable(Protocol):
    """What a shelf holds; its size may grow until it is finished, and it is not forgotten before."""

    @property
    def key_id(self) -> str:
        """Whose it is."""
        ...

    @property
    def finished(self) -> bool:
        """Whether it changes no more."""
        ...

    @property
    def nbytes(self) -> int:
        """What it takes, in bytes."""
        ...


K = TypeVar("K", bound="Hashable")
V = TypeVar("V", bound=Keepable)


class Shelf(Generic[K, V]):
    """Values by key.

    Args:
        most_bytes: how large together.
        most: how many.
        keep_s: how long, from when they were put there.
        clock: in seconds.
    """

    def __init__(
        self,
        *,
        most_bytes: int,
        most: int = 1000,
        keep_s: float = DAY_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._keep_s, self._most, self._most_bytes, self._clock = keep_s, most, most_bytes, clock
        self._values: dict[K, tuple[float, V]] = {}

    def put(self, key: K, value: V) -> None:
        """Keep a value, in place of another perhaps."""
        self.drop(key)
        self._values[key] = (self._clock(), value)
        self._tidy()

    def get(self, key: K) -> V | None:
        """The value, unless it was forgotten."""
        self._tidy()
        return self._values[key][1] if key in self._values else None

    def drop(self, key: K) -> None:
        """Forget one."""
        self._values.pop(key, None)

    def __iter__(self) -> Iterator[V]:
        return iter([value for _, value in self._values.values()])

    def _tidy(self) -> None:
        """Forget what is too old, then what is too much. Dictionaries keep the order of arrival."""
        oldest = self._clock() - self._keep_s
        for key, (put, value) in list(self._values.items()):
            if put <= oldest and value.finished:
                self.drop(key)
        while self._is_full() and (missed := self._least_missed()) is not None:
            self.drop(missed)

    def _is_full(self) -> bool:
        return len(self._values) > self._most or sum(value.nbytes for value in self) > self._most_bytes

    def _least_missed(self) -> K | None:
        """The oldest of whoever takes the largest part of the room, in number or in bytes."""
        parts: defaultdict[str, float] = defaultdict(float)
        for value in self:
            parts[value.key_id] += 1 / self._most + value.nbytes / self._most_bytes
        finished = [(key, value.key_id) for key, (_, value) in self._values.items() if value.finished]
        if not finished:
            return None
        most = max(dict.fromkeys(owner for _, owner in finished), key=lambda owner: parts[owner])
        return next(key for key, owner in finished if owner == most)
