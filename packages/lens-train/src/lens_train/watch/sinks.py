"""Where curves go besides the file of metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lens_train.watch.config import WatchConfig

__all__ = ["TENSORBOARD", "Sink", "open_sinks"]

TENSORBOARD = "tb"


class Sink(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers; what is not finite is left out."""
        ...

    def flush(self) -> None:
        """Bring them to disk: the state that is saved next counts them as written."""
        ...

    def close(self) -> None:
        """End."""
        ...


def open_sinks(config: WatchConfig, folder: Path, *, step: int) -> list[Sink]:
    """The sinks that a config names.

    Args:
        config: what is watched.
        folder: where files lie.
        step: the step that the run goes on from; what was written of later ones is forgotten.
    """
    return [TensorBoard(folder, step=step)] if config.tensorboard else []


class TensorBoard:
    """TensorBoard's event files."""

    def __init__(self, folder: Path, *, step: int):
        self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers."""
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Bring them to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
