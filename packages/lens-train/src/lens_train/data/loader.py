"""From the plan to the packs that a rank trains on, read ahead by worker processes where asked.

Rank r of W takes the packs r, r + W, r + 2·W … of every step; which images these are is the plan's business, so that
nothing here has a state to save.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_train.data.images import ImageSource
    from lens_train.planning.packs import Pack, Plan, PlannedSample

__all__ = ["LoadedPack", "PackLoader"]


@dataclass(frozen=True, kw_only=True)
class LoadedPack:
    """A pack with its images.

    Args:
        pack: as planned.
        samples: those of its samples that could be read.
        images: uint8 [H, W, 3], or tokens [n, C] where latents were made beforehand, of each of these.
        bad: what is to be said of the others.
    """

    pack: Pack
    samples: list[PlannedSample]
    images: list[Tensor]
    bad: list[str]


class PackLoader:
    """Endless packs of one rank.

    Args:
        plan: which samples a pack holds.
        source: their images.
        first: the pack of the whole run to begin with.
        stride: how many packs the ranks take together.
        workers: processes that read and decode; 0 does it in this one.
        ahead: packs that each worker keeps ready.
    """

    def __init__(self, plan: Plan, source: ImageSource, *, first: int, stride: int, workers: int, ahead: int = 2):
        self._plan = plan
        loader: DataLoader[Any] = DataLoader(
            _Packs(plan, source),
            sampler=_Every(first, stride),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_live_and_end_with_the_rank,
        )
        self._packs: Any = iter(loader)
        self._workers = workers
        self.waited_s = 0.0
        """Seconds that `next` has taken so far."""

    def __next__(self) -> LoadedPack:
        started = time.perf_counter()
        read: _Read = next(self._packs)
        pack = self._plan.pack(read.index)
        pieces = read.flat.split([math.prod(shape) for shape in read.shapes])
        loaded = LoadedPack(
            pack=pack,
            samples=[pack.samples[place] for place in read.places],
            images=[piece.view(shape) for piece, shape in zip(pieces, read.shapes, strict=True)],
            bad=read.bad,
        )
        self.waited_s += time.perf_counter() - started
        return loaded

    def close(self) -> None:
        """End the workers. Python would end them by SIGTERM, which they ignore, and then wait for them for ever."""
        if self._workers:
            self._packs._shutdown_workers()


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What a worker sends: all images in one tensor, since each tensor takes a file of shared memory."""

    index: int
    places: list[int]
    flat: Tensor
    shapes: list[torch.Size]
    bad: list[str]


class _Packs(Dataset["_Read"]):
    def __init__(self, plan: Plan, source: ImageSource):
        self._plan = plan
        self._source = source

    def __getitem__(self, index: int) -> _Read:
        images = self._source([sample.number for sample in self._plan.pack(index).samples])
        read = {place: image for place, image in enumerate(images) if isinstance(image, Tensor)}
        return _Read(
            index=index,
            places=list(read),
            flat=torch.cat([image.flatten() for image in read.values()]) if read else torch.empty(0),
            shapes=[image.shape for image in read.values()],
            bad=[image for image in images if isinstance(image, str)],
        )


class _Every(torch.utils.data.Sampler[int]):
    def __init__(self, first: int, stride: int):
        self._first, self._stride = first, stride

    def __iter__(self) -> Iterator[int]:
        index = self._first
        while True:
            yield index
            index += self._stride


def _as_it_is(pack: Any) -> Any:
    return pack


def _live_and_end_with_the_rank(worker: int) -> None:
    """Torchrun, a scheduler and Ctrl-C signal the whole group: the rank saves first, and then ends its workers.

    A worker that was not forked ends as a forked one does, without taking its interpreter down: the thread that still
    copies a pack to shared memory would abort the process, and the rank would take that for a failure of its own.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    atexit.register(os._exit, 0)
