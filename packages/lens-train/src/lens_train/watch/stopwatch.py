"""How long parts of a step take, on the device that does them."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the seconds of named parts. On CUDA it marks the stream, and waits only when it is asked.

    Args:
        device: where the parts run.
    """

    def __init__(self, device: torch.device):
        self._on_cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        if self._on_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._marks.append((name, begin, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Seconds by name since the last call."""
        if self._marks:
            torch.cuda.synchronize()
        for name, begin, end in self._marks:
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        taken, self._seconds, self._marks = dict(self._seconds), defaultdict(float), []
        return taken
