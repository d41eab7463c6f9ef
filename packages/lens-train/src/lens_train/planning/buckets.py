"""The plan of the paper: a pack is a batch of images of one size.

The paper pads the captions of a batch to one length. Here they keep their own, and nothing is padded.

Stage 2 of the paper trains 27 sizes (512, 768 and 1024 pixels in nine ratios) in batches of 24, 10 and 6 per GPU. It is
here to be compared with, and for those who want to follow the paper to the letter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lens_train.planning.permutation import key_of, permute

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lens_train.planning.packs import Pack
    from lens_train.planning.samples import SampleSource

__all__ = ["BucketPlan", "closest"]


class BucketPlan:
    """A `Plan` of packs of one size each. The last batch of each size may be smaller.

    Args:
        source: what is trained on.
        batches: samples per pack, by the side of the square that a size has about the area of.
    """

    capacity = None

    def __init__(self, source: SampleSource, batches: Mapping[int, int]):
        self.source = source
        self.fingerprint = source.fingerprint("buckets 1", batches=sorted(batches.items()))
        sizes = source.manifest.sizes
        # The ranking has the sizes in turn, so a bucket is a stretch of it.
        self._counts = [count for _, _, count in sizes]
        self._starts = np.cumsum([0, *self._counts])
        self._batches = [batches[closest(batches, height * width)] for height, width, _ in sizes]
        packs = [math.ceil(count / batch) for count, batch in zip(self._counts, self._batches, strict=True)]
        self._first_packs = np.cumsum([0, *packs])

    @property
    def packs_per_epoch(self) -> int:
        """See `Plan`."""
        return int(self._first_packs[-1])

    def pack(self, index: int) -> Pack:
        """See `Plan`."""
        epoch, place = divmod(index, self.packs_per_epoch)
        place = int(permute(place, self.packs_per_epoch, self._key("buckets", epoch)))
        bucket = int(np.searchsorted(self._first_packs, place, side="right")) - 1
        first = (place - int(self._first_packs[bucket])) * self._batches[bucket]
        count = self._counts[bucket]
        turns = np.arange(first, min(first + self._batches[bucket], count))
        ranks = self._starts[bucket] + permute(turns, count, self._key("bucket", epoch, bucket))
        return self.source.take(ranks, epoch=epoch, group=index).pack(index, slice(None))

    def _key(self, *parts: str | int) -> np.uint64:
        return np.uint64(key_of(*parts, self.source.manifest.hash, self.source.seed))


def closest(batches: Mapping[int, int], area: int) -> int:
    """The side whose square is nearest to an area."""
    return min(batches, key=lambda base: abs(math.log(base * base / area)))
