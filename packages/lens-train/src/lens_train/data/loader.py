"""From the plan to the packs that a rank trains on, read ahead by worker processes where asked.

Rank r of W takes the packs r, r + W, r + 2·W … of every step; which images these are is the plan's business, so that
nothing here has a state to save.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

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
        loader: DataLoader[Any] = DataLoader(
            _Packs(plan, source),
            sampler=_Every(first, stride),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            collate_fn=_as_it_is,
        )
        self._packs = iter(loader)
        self.waited_s = 0.0
        """Seconds that `next` has taken so far."""

    def __next__(self) -> LoadedPack:
        started = time.perf_counter()
        pack: LoadedPack = next(self._packs)
        self.waited_s += time.perf_counter() - started
        return pack


class _Packs(Dataset["LoadedPack"]):
    def __init__(self, plan: Plan, source: ImageSource):
        self._plan = plan
        self._source = source

    def __getitem__(self, index: int) -> LoadedPack:
        pack = self._plan.pack(index)
        images = self._source([sample.number for sample in pack.samples])
        read = [(s, image) for s, image in zip(pack.samples, images, strict=True) if isinstance(image, torch.Tensor)]
        return LoadedPack(
            pack=pack,
            samples=[sample for sample, _ in read],
            images=[image for _, image in read],
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
