"""A folder of checkpoints: saved while training goes on, the newest named last.

    checkpoints/latest                 "step-00001200": the folder to go on from
    checkpoints/step-00001200/         see storage.py
    checkpoints/.step-00001300.tmp/    being written, or left by a run that was killed

    store = CheckpointStore(folder, world, keep_last=2, keep_every=10_000)
    meta = store.load_latest(state)    # None: there is nothing to go on from
    store.save(1200, state, meta)      # copies the tensors, returns, and writes them in a thread
    store.wait()                       # before leaving
    store.hand_over(kept)              # when training is done: this folder goes with the stage's state

A save is one operation of all ranks. When all of them have written, one of them renames the folder and then the
pointer; so a kill, or a full disk, leaves the checkpoint before it in place. All ranks must see the same folder.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from lens_core.errors import ArtifactError, LensError, StorageError
from lens_train.checkpoint.storage import Description, SafetensorsReader, SafetensorsWriter
from lens_train.checkpoint.writing import writing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    import torch

    from lens_train.checkpoint.state import TrainingState
    from lens_train.parallel.world import World

__all__ = ["CheckpointStore"]

LATEST = "latest"


class CheckpointStore:
    """Checkpoints of one run.

    Args:
        folder: where they lie; made when needed.
        world: who saves together.
        keep_last: how many of the newest are kept.
        keep_every: checkpoints of steps that this divides are kept for good; None: of none.
    """

    def __init__(self, folder: Path, world: World, *, keep_last: int = 2, keep_every: int | None = None):
        self.folder = folder
        self.world = world
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._pending: tuple[int, Future[Any]] | None = None
        self._newest: int | None = None

    def save(self, step: int, state: TrainingState, meta: Mapping[str, Any]) -> None:
        """Copy the state now and write it in the background, after the save before it is done.

        Args:
            step: names the checkpoint; nothing is done if that of this step is the newest.
            state: what all ranks have.
            meta: what is no tensor; JSON, and the same on all ranks.

        Raises:
            StorageError: the save before this one failed.
        """
        self.wait()
        if step == self._newest:
            return
        partial = self.folder / f".{_name(step)}.tmp"
        if self.world.is_main:
            self._sweep()
        self.world.barrier(f"the checkpoint of step {step}")
        writer = SafetensorsWriter(partial, self.world.rank, meta, lambda: self._commit(partial, step))
        _quiet_alone()
        saving = async_save(
            state.tensors(),
            storage_writer=writer,
            planner=DefaultSavePlanner(flatten_state_dict=False),
            process_group=self.world.saving,
            no_dist=self.world.size == 1,
        )
        self._pending = (step, saving)  # type: ignore[assignment]
        self._newest = step

    def keeps(self, step: int) -> bool:
        """Whether a checkpoint of this step is kept for good."""
        return self.keep_every is not None and step % self.keep_every == 0

    def wait(self) -> None:
        """Until the last save is on the disk.

        Raises:
            StorageError: it is not; the message says why, and which checkpoint there is.
        """
        if self._pending is None:
            return
        (step, saving), self._pending = self._pending, None
        try:
            with self.world.watching("writing it"):
                saving.result()
        except (Exception, CheckpointException) as error:
            cause = _told(error)
            if cause is None:
                raise
            self._newest, latest = None, self.latest()
            rest = f"{latest.name} is intact" if latest else "there is none before it"
            raise StorageError(f"the checkpoint of step {step} is not saved: {cause}; {rest}") from error

    def hand_over(self, folder: Path) -> None:
        """Put what is kept for good where it outlives the state; only one rank calls this.

        By links, so that the state stays whole for a run that is killed before its stage is done.

        Args:
            folder: for these checkpoints alone; what lies there is replaced.

        Raises:
            StorageError: it cannot be written.
        """
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            for checkpoint in self.folder.glob("step-*"):
                if self.keeps(_step(checkpoint)):
                    shutil.copytree(checkpoint, folder / checkpoint.name, copy_function=_link)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Around what else a run writes as it goes: if that fails, the message says where the run goes on from.

        Raises:
            StorageError: with what it was raised with inside, and the newest checkpoint.
        """
        try:
            yield
        except StorageError as error:
            with suppress(StorageError):
                self.wait()
            latest = self.latest()
            start = latest.name if latest else "its beginning"
            raise StorageError(f"{error}; once it can, the same command goes on from {start}") from error

    def latest(self) -> Path | None:
        """The folder of the newest checkpoint.

        Raises:
            ArtifactError: the pointer is damaged.
        """
        pointer = self.folder / LATEST
        try:
            name = pointer.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None
        if not re.fullmatch(r"step-\d+", name):
            raise ArtifactError(
                f"{pointer} names {name[:40]!r}, which is no checkpoint; write one of its neighbours in"
            )
        return self.folder / name

    def load_latest(self, state: TrainingState) -> dict[str, Any] | None:
        """Read the newest checkpoint into the state, whatever the number of ranks that wrote it.

        Returns:
            its meta; None if there is no checkpoint.

        Raises:
            ArtifactError: it is damaged, or of another model; the message names the first tensor that differs.
        """
        self.wait()
        folder = self.latest()
        if folder is None:
            return None
        description = Description(folder)
        state.make_room(description.tensors)
        tensors = state.tensors()
        _check(folder, description.shapes, tensors)
        _quiet_alone()
        try:
            with self.world.watching(f"reading {folder}"):
                load(
                    tensors,
                    storage_reader=SafetensorsReader(description),
                    planner=DefaultLoadPlanner(flatten_state_dict=False),
                    process_group=self.world.saving,
                    no_dist=self.world.size == 1,
                )
        except CheckpointException as error:
            raise _told(error) or error from None
        state.quantise(tensors)
        self._newest = _step(folder)  # a save of it anew would take it away for a while
        return description.meta

    def _commit(self, partial: Path, step: int) -> None:
        """Make a finished save the newest checkpoint; only one rank calls this."""
        final, pointer = self.folder / _name(step), self.folder / LATEST
        with writing(pointer):
            if final.exists():
                self._remove(final)
            partial.rename(final)
            temporary = pointer.with_suffix(".tmp")
            temporary.write_text(final.name + "\n", encoding="utf-8")
            temporary.replace(pointer)
        steps = sorted(_step(path) for path in self.folder.glob("step-*"))
        for old in steps[: -self.keep_last]:
            if old != step and not self.keeps(old):
                self._remove(self.folder / _name(old))

    def _remove(self, checkpoint: Path) -> None:
        hidden = checkpoint.with_name(f".{checkpoint.name}.old.tmp")  # a checkpoint is whole or has no name
        checkpoint.rename(hidden)
        shutil.rmtree(hidden)

    def _sweep(self) -> None:
        for left in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(left)


def _check(folder: Path, stored: Mapping[str, tuple[torch.Size, torch.dtype]], own: Mapping[str, torch.Tensor]) -> None:
    """All tensors are stored, nothing else is, and shapes and dtypes agree."""
    for name in sorted(stored.keys() | own.keys()):
        if name not in stored:
            problem = f"it has no {name!r}"
        elif name not in own:
            problem = f"its {name!r} has no place here"
        elif stored[name] != (own[name].shape, own[name].dtype):
            (shape, dtype), tensor = stored[name], own[name]
            problem = f"its {name!r} is {tuple(shape)} {dtype}, and {tuple(tensor.shape)} {tensor.dtype} is needed"
        else:
            continue
        raise ArtifactError(f"{folder} is of another model or optimiser: {problem}; train in another run folder")


def _told(error: BaseException) -> LensError | None:
    """What any rank has to say of why saving or loading failed; None if it is a mistake of ours."""
    failures = [failure for failure, _ in error.failures.values()] if isinstance(error, CheckpointException) else []
    return next((failure for failure in [error, *failures] if isinstance(failure, LensError)), None)


def _quiet_alone() -> None:
    """DCP warns at each call that a single process saves alone, which is as it should be."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a mounted drive may have no links
        shutil.copy(source, target)
