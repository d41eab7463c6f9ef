"""The ragged plan: every pack costs nearly the same, whatever sizes and captions are in it, and nothing is padded.

The ranking of the manifest is cut into strata, each of as many samples as an epoch has windows. A window takes one
sample from every stratum, by a permutation of each stratum that is drawn anew in each epoch. So every sample occurs
once per epoch, every window is a picture of the whole, and any window is known without the others. Samples that the
strata leave over, of middling cost, go to a window each. Within a window, `planning.partition` splits the samples into
packs of nearly equal FLOPs, image tokens and text tokens.

    epoch    └─ window 0 ─┘└─ window 1 ─┘…          pack index → epoch, window, place: arithmetic
    window   one sample of each stratum, a few hundred
    pack     its share
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_train.planning.partition import partition
from lens_train.planning.permutation import key_of, permute, subkeys

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lens_train.planning.packs import Pack
    from lens_train.planning.samples import Samples, SampleSource

__all__ = ["RaggedPlan"]

WINDOW = 256
"""A window has from this many samples to twice as many: enough to balance packs, few enough to plan in milliseconds."""
SURVEY_SAMPLES = 4096
"""So many samples, evenly spaced in the ranking, tell the mean cost of all."""
SURVEY_WINDOWS = 64


class RaggedPlan:
    """A `Plan` of packs of equal cost, whose size is given in exactly one of three measures.

    Args:
        source: what is trained on.
        samples: per pack, at most. All packs have nearly as many.
        tokens: image and text tokens per pack, in the mean.
        flops: training FLOPs per pack, in the mean.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        samples: int | None = None,
        tokens: int | None = None,
        flops: float | None = None,
    ):
        self.source = source
        self.fingerprint = source.fingerprint("ragged 1", samples=samples, tokens=tokens, flops=flops)
        count = len(source.manifest)
        if samples is not None:
            wanted = math.ceil(count / samples)
        else:
            mean_tokens, mean_flops = self._mean()
            wanted = math.ceil(
                count * (mean_tokens / tokens if tokens is not None else mean_flops / (flops or math.nan))
            )
        self._packs, self._windows = _shape(count, wanted)

    def __getstate__(self) -> dict[str, Any]:
        """Another process plans its windows itself."""
        return {name: value for name, value in vars(self).items() if name != "_window"}

    @property
    def packs_per_epoch(self) -> int:
        """See `Plan`."""
        return self._packs * self._windows

    def pack(self, index: int) -> Pack:
        """See `Plan`."""
        window, place = divmod(index, self._packs)
        samples, packs_PS = self._window(window)
        return samples.pack(index, packs_PS[place][packs_PS[place] >= 0])

    @cached_property
    def capacity(self) -> tuple[int, int]:
        """See `Plan`. Measured on windows all over the first epoch, or over as many epochs as it takes.

        The mean load of windows varies as sums of independent lots do: five standard deviations of room are enough for
        10⁶ windows. Packs of one window differ by what `partition` could not balance: the most that was seen, and a
        quarter more.
        """
        windows = np.linspace(0, max(self._windows, SURVEY_WINDOWS) - 1, SURVEY_WINDOWS).astype(int)
        loads_WPM = np.stack([self._loads(int(window)) for window in windows])
        means_WM = loads_WPM.mean(1)
        excess_M = (loads_WPM.max(1) - means_WM).max(0)
        image, text = np.ceil((means_WM.mean(0) + 5 * means_WM.std(0) + 1.25 * excess_M) / 16).astype(int) * 16
        return int(image), int(text)

    def _loads(self, window: int) -> NDArray[np.int64]:
        """Image and text tokens [P, 2] of the packs of a window."""
        samples, packs_PS = self._plan_window(window)
        tokens_K2 = np.stack([samples.image_tokens, samples.text_tokens], axis=1)
        return np.append(tokens_K2, [[0, 0]], axis=0)[packs_PS].sum(1)

    @cached_property
    def _window(self) -> Callable[[int], tuple[Samples, NDArray[np.int64]]]:
        """`_plan_window`, which remembers the latest: packs of a window come one after another."""
        return lru_cache(maxsize=4)(self._plan_window)

    def _plan_window(self, number: int) -> tuple[Samples, NDArray[np.int64]]:
        """The samples of a window of the endless sequence, and the places that each pack takes, padded with -1."""
        epoch, window = divmod(number, self._windows)
        samples = self.source.take(self._ranks(epoch, window), epoch=epoch, group=window)
        loads = np.stack([samples.flops, samples.image_tokens, samples.text_tokens], axis=1)
        key = key_of("packs", self.source.manifest.hash, self.source.seed, number)
        return samples, partition(loads, self._packs, key=key)

    def _ranks(self, epoch: int, window: int) -> NDArray[np.int64]:
        """A place of every stratum, and perhaps one of those left over, which are taken out of the middle."""
        strata, left_over = divmod(len(self.source.manifest), self._windows)
        middle = (len(self.source.manifest) - left_over) // 2
        keys = subkeys(key_of("strata", self.source.manifest.hash, self.source.seed, epoch), strata + 1)
        places = permute(np.full(strata + 1, window), self._windows, keys)
        ranks = np.arange(strata) * self._windows + places[:-1]
        ranks[ranks >= middle] += left_over
        return np.append(ranks, middle + places[-1]) if places[-1] < left_over else ranks

    def _mean(self) -> tuple[float, float]:
        """Tokens and FLOPs of the mean sample."""
        count = len(self.source.manifest)
        ranks = np.linspace(0, count - 1, min(count, SURVEY_SAMPLES)).astype(np.int64)
        samples = self.source.take(ranks, epoch=0, group=0)
        return float((samples.image_tokens + samples.text_tokens).mean()), float(samples.flops.mean())


def _shape(count: int, wanted: int) -> tuple[int, int]:
    """Packs per window and windows per epoch, so that there are as many packs as wanted, or a few more.

    No window may have fewer samples than packs. Where that leaves no other way, each pack is a window of its own.
    """
    wanted = max(1, min(wanted, count))
    fewest = max(4, WINDOW * wanted // count)
    if wanted <= 2 * fewest:
        return wanted, 1
    shapes = [(packs, math.ceil(wanted / packs)) for packs in range(2 * fewest, fewest - 1, -1)]
    return min((shape for shape in shapes if math.prod(shape) <= count), key=math.prod, default=(1, wanted))
