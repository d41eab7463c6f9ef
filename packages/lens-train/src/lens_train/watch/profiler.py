"""Traces of a few steps, for chrome://tracing or ui.perfetto.dev: planned ahead, or asked for by SIGUSR1.

A planned trace is of rank 0. A signal is answered by the process that gets it, from its next step on.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Self

from torch.profiler import ProfilerActivity, profile

from lens_train.checkpoint.writing import writing
from lens_train.watch.config import ProfileConfig

if TYPE_CHECKING:
    from pathlib import Path

    from lens_train.parallel.world import World

__all__ = ["TRACES", "Profiler"]

TRACES = "traces"


class Profiler:
    """Traces steps, between `begin` and `end` of each; within its context it listens to the signal.

    Args:
        config: what is traced without being asked.
        folder: where the folder of traces lies.
        world: whose rank names a trace.
    """

    def __init__(self, config: ProfileConfig | None, folder: Path, world: World):
        self._planned = config.at if config and world.is_main else None
        self._steps = config.steps if config else ProfileConfig(at=1).steps
        self._folder = folder / TRACES
        self._world = world
        self._listens = threading.current_thread() is threading.main_thread()  # no other may
        self._asked = False
        self._first = 0
        self._profile: profile | None = None

    def __enter__(self) -> Self:
        if self._listens:
            self._before = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        """Write what there is of a trace that the run's end cuts short."""
        if self._listens:
            signal.signal(signal.SIGUSR1, self._before)
        self._write()

    def begin(self, step: int) -> None:
        """A step begins."""
        if self._profile or not (self._asked or step == self._planned):
            return
        self._asked, self._first = False, step
        on_cuda = [ProfilerActivity.CUDA] if self._world.device.type == "cuda" else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *on_cuda])
        self._profile.start()

    def end(self, step: int) -> None:
        """It has ended."""
        if step == self._first + self._steps - 1:
            self._write()

    def _ask(self, *_: object) -> None:
        self._asked = True

    def _write(self) -> None:
        if self._profile:
            done, self._profile = self._profile, None
            done.stop()
            file = self._folder / f"step-{self._first}-rank-{self._world.rank}.json.gz"
            with writing(file):
                self._folder.mkdir(exist_ok=True)
                done.export_chrome_trace(str(file))
