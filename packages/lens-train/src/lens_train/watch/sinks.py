"""Where curves go besides the file of metrics."""

from __future__ import annotations

import importlib
import math
import secrets
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from lens_core.errors import MissingExtraError
from lens_core.specs import pip_line

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
        step: the step that the run goes on from; what was written of later ones is forgotten, where the sink can.

    Raises:
        MissingExtraError: one needs a library that is not installed.
    """
    projects = {"wandb": config.wandb, "trackio": config.trackio}
    trackers: list[Sink] = [Tracker(name, project, folder) for name, project in projects.items() if project]
    return [*trackers, TensorBoard(folder, step=step)] if config.tensorboard else trackers


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


class Tracker:
    """A run of W&B or of trackio, which agree in what is needed here; a run that goes on is the same run there.

    Keys and addresses are theirs to find, in the environment.
    """

    def __init__(self, library: str, project: str, folder: Path):
        try:
            self._library: Any = importlib.import_module(library)
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"watch.{library} needs the library {error.name!r}, which is not installed; "
                f"install it with: {pip_line(f'lens-train[{library}]')}"
            ) from error
        known = folder / "tracked-as"
        if not known.exists():
            known.write_text(f"{folder.name}-{secrets.token_hex(4)}", encoding="utf-8")
        name = known.read_text(encoding="utf-8")
        own = {"id": name} if library == "wandb" else {}  # trackio goes by the name
        self._library.init(project=project, name=name, resume="allow", **own)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers."""
        self._library.log({name: value for name, value in values.items() if math.isfinite(value)}, step=step)

    def flush(self) -> None:
        """They send in their own time."""

    def close(self) -> None:
        """End the run there."""
        self._library.finish()
