"""The next batch is prepared while a step runs.

Drawing noise and gathering pixels is work for one core, and a step leaves gaps on the others.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """Makes item after item on a thread of its own, one ahead of the one that is asked for.

    Args:
        make: makes the item of a number; what it depends on must not change meanwhile.
    """

    def __init__(self, make: Callable[[int], T]):
        self._make = make
        self._coming: dict[int, Future[T]] = {}

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next-batch")
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def get(self, number: int) -> T:
        """The item of a number; the next one is begun. Errors of making it are raised here."""
        coming = self._coming.pop(number, None) or self._thread.submit(self._make, number)
        item = coming.result()
        self._coming = {number + 1: self._thread.submit(self._make, number + 1)}
        return item
