"""Where curves go besides the file of metrics."""

from __future__ import annotations

import importlib
import math
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

from lens_core.errors import MissingExtraError
from lens_core.specs import pip_line
from lens_train.checkpoint.writing import writing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lens_train.watch.config import WatchConfig

__all__ = ["TENSORBOARD", "Sink", "open_sinks"]

TENSORBOARD = "tb"


class Sink(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers; what is not finite is left out.

        A file has them when this returns: the state that is saved next counts them as written.

        Raises:
            StorageError: it cannot be written.
        """
        ...

    def close(self) -> None:
        """End."""
        ...


def open_sinks(config: WatchConfig, folder: Path, *, step: int, settings: Mapping[str, Any]) -> list[Sink]:
    """The sinks that a config names.

    Args:
        config: what is watched.
        folder: where files lie.
        step: the step that the run goes on from; what was written of later ones is forgotten, where the sink can.
        settings: the stage's, for trackers to show.

    Raises:
        MissingExtraError: one needs a library that is not installed.
    """
    projects = {"wandb": config.wandb, "trackio": config.trackio}
    trackers: list[Sink] = [Tracker(name, project, folder, settings) for name, project in projects.items() if project]
    return [*trackers, TensorBoard(folder, step=step)] if config.tensorboard else trackers


class TensorBoard:
    """An event file of TensorBoard, beside those of the run so far.

    It is written here and now: torch's `SummaryWriter` does it in a thread, where a full disk goes unseen for a while
    and ends in a traceback.
    """

    def __init__(self, folder: Path, *, step: int):
        self.path = folder / TENSORBOARD / f"events.out.tfevents.{time.time_ns()}"  # they are read in this order
        with writing(self.path):
            self.path.parent.mkdir(exist_ok=True)
            self._file = self.path.open("xb")
        # What an earlier file says of this step and later ones is forgotten.
        beginning = Event(session_log=SessionLog(status=SessionLog.START))
        self._add([Event(file_version="brain.Event:2"), beginning], step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._add([Event(summary=scalar(name, value)) for name, value in finite.items()], step)

    def _add(self, events: Sequence[Any], step: int) -> None:
        records = RecordWriter(self._file)
        with writing(self.path):
            for event in events:
                event.step, event.wall_time = step, time.time()
                records.write(event.SerializeToString())
            records.flush()

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what could not be written has been told
            self._file.close()


class Tracker:
    """A run of W&B or of trackio, which agree in what is needed here; a run that goes on is the same run there.

    Keys and addresses are theirs to find, in the environment.
    """

    def __init__(self, library: str, project: str, folder: Path, settings: Mapping[str, Any]):
        try:
            self._library: Any = importlib.import_module(library)
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"watch.{library} needs the library {error.name!r}, which is not installed; "
                f"install it with: {pip_line(f'lens-train[{library}]')}"
            ) from error
        known = folder / "tracked-as"
        if not known.exists():
            with writing(known):
                known.write_text(f"{folder.name}-{secrets.token_hex(4)}", encoding="utf-8")
        name = known.read_text(encoding="utf-8")
        own = {"id": name} if library == "wandb" else {}  # trackio goes by the name
        self._library.init(project=project, name=name, resume="allow", config=dict(settings), **own)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's numbers."""
        self._library.log({name: value for name, value in values.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        """End the run there."""
        self._library.finish()
