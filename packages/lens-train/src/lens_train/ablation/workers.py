"""Several cells at once, each in a process of its own.

A process is spawned for a cell, loads the registry, and runs the cell as this process would; what it says of its
progress comes through a pipe and is told here, by a part of the ablation's progress. A request to stop goes the other
way. A worker whose parent dies finds the pipe closed and ends at once, so that nobody works on unseen.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lens_core.errors import ConfigError, LensError, Stopped
from lens_core.pipeline.progress import Progress
from lens_core.registry import load_registry
from lens_train.ablation.cells import Cell, run_cell
from lens_train.ablation.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.connection import Connection

__all__ = ["run_in_workers"]

_POLL_S = 0.2
_UPDATE_S = 0.2
_PATIENCE_S = 30
"""How long a process may take to end once it has said its last word."""


def run_in_workers(
    cells: Sequence[Cell],
    *,
    devices: Sequence[str | None],
    folder: Path,
    results: Results,
    base: str,
    progress: Progress,
    on_done: Callable[[Cell], None],
) -> None:
    """Run cells, as many at once as there are devices.

    Args:
        cells: in the order in which they begin.
        devices: of each worker: "cuda:1", "cpu", or None for what the stages choose.
        folder: holds a folder for each cell.
        results: where the cells leave what they found.
        base: the folder that relative paths in their configs are relative to.
        progress: the ablation's.
        on_done: told of every cell that is done.

    Raises:
        Stopped: the user asked for it; every cell has saved its state.
        LensError: a cell failed; which, and why. The others have saved their state.
    """
    waiting, free = deque(cells), deque(devices)
    at_work: dict[Any, _Worker] = {}
    failure: Exception | None = None
    stopping = stopped = False
    try:
        while at_work or (waiting and not stopping):
            while waiting and free and not stopping:
                worker = _Worker(waiting.popleft(), free.popleft(), folder, results, base, progress)
                at_work[worker.connection] = worker
            for ready in wait(list(at_work), _POLL_S):
                worker = at_work[ready]
                outcome = worker.listen()
                if outcome is None:
                    continue
                del at_work[ready]
                worker.end(_PATIENCE_S)
                free.append(worker.device)
                if outcome == "done":
                    on_done(worker.cell)
                elif outcome == "stopped":
                    stopped = True
                else:
                    failure = failure or outcome
            if (progress.stop_asked or failure) and not stopping:
                stopping = True
                for worker in at_work.values():
                    worker.stop()
    finally:
        for worker in at_work.values():
            worker.end(0)
    if failure:
        raise failure
    if stopped or waiting:
        raise Stopped("stopped; the same command goes on from here")


class _Worker:
    """A process with a cell, as its parent sees it."""

    def __init__(
        self, cell: Cell, device: str | None, folder: Path, results: Results, base: str, progress: Progress
    ) -> None:
        self.cell = cell
        self.device = device
        self._progress = progress.part(cell.title)
        self._has_open_stage = False
        order = {"cell": cell.to_json(), "device": device, "folder": str(folder / cell.name), "base": base}
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(theirs, {**order, "results": results.url}), name=cell.name)
        self._process.start()
        theirs.close()

    def listen(self) -> Literal["done", "stopped"] | Exception | None:
        """Take a message: progress is told, and None returned; otherwise how the cell ended."""
        try:
            word, arguments, fields = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            if self._has_open_stage:
                self._progress.close("stage-failed")
            code = self._process.exitcode or 0
            how = f"was killed by signal {-code}, for want of memory perhaps" if code < 0 else f"ended with code {code}"
            return LensError(f"{self.cell.title}: its process {how}")
        if word in {"done", "stopped"}:
            return word  # type: ignore[no-any-return]
        if word == "failed":
            return LensError(f"{self.cell.title}: {arguments[0]}")
        if word == "broken":
            return RuntimeError(f"{self.cell.title}:\n{arguments[0]}")
        self._has_open_stage = word == "open" or (self._has_open_stage and word != "close")
        getattr(self._progress, word)(*arguments, **fields)
        return None

    def stop(self) -> None:
        """Ask it to save its state and stop."""
        with contextlib.suppress(ConnectionError):  # it has just ended by itself
            self.connection.send("stop")

    def end(self, patience_s: float) -> None:
        """See to it that it is gone."""
        self._process.join(patience_s)
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


def _work(connection: Connection, order: Mapping[str, Any]) -> None:
    """What the process does."""
    progress = _Relay(connection)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: progress.ask_to_stop())
    threading.Thread(target=_obey, args=(connection, progress), daemon=True).start()
    try:
        _see_only(order["device"])
        registry = load_registry()
        run_cell(
            Cell.from_json(order["cell"], registry),
            folder=Path(order["folder"]),
            results=Results(order["results"]),
            base=order["base"],
            registry=registry,
            progress=progress,
        )
        progress.send("done")
    except Stopped:
        progress.send("stopped")
    except LensError as error:
        progress.send("failed", str(error))
    except Exception:
        progress.send("broken", traceback.format_exc())


def _obey(connection: Connection, progress: _Relay) -> None:
    """Stop when asked to; end at once when nobody is left to ask."""
    try:
        while True:
            connection.recv()
            progress.ask_to_stop()
    except (EOFError, OSError):
        os._exit(1)


def _see_only(device: str | None) -> None:
    """Hide other devices, before CUDA is looked at: the stages' `device: auto` then finds this one.

    Raises:
        ConfigError: there is no such device.
    """
    if device is None:
        return
    number = device.removeprefix("cuda:")
    there = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = there.split(",") if there else None
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if visible is None or int(number) < len(visible):
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(number)] if visible else number
        if torch.cuda.is_available():
            return
    raise ConfigError(f"there is no {device} on this machine", key="devices")


class _Relay(Progress):
    """Progress that is told by the parent."""

    def __init__(self, connection: Connection):
        super().__init__(live=False)
        self._connection = connection
        self._sending = threading.Lock()
        self._updated = 0.0

    def ask_to_stop(self) -> None:
        self.stop_asked = True

    def send(self, word: str, *arguments: Any, **fields: Any) -> None:
        with self._sending:
            self._connection.send((word, arguments, fields))

    def open(self, stage: str) -> None:
        self.send("open", stage)

    def start(self, total: float | None, unit: str) -> None:
        self.send("start", total, unit)

    def update(self, done: float, **metrics: Any) -> None:
        if time.monotonic() - self._updated > _UPDATE_S:
            self._updated = time.monotonic()
            self.send("update", done, **metrics)

    def note(self, message: str) -> None:
        self.send("note", message)

    def warn(self, message: str) -> None:
        self.send("warn", message)

    def heading(self, message: str, **fields: Any) -> None:
        self.send("heading", message, **fields)

    def close(self, event: str, **fields: Any) -> None:
        self.send("close", event, **fields)
