"""Samples as an epoch has them: which caption each is trained with, how many tokens it has, what it costs.

Which of several captions it is, is drawn by counter of the image's key. Guidance needs samples without a caption, so a
share of them loses it: with a share of a tenth every tenth of those that are taken together, from a random one on. Any
sample is as likely to lose it as by a lot of its own, but the tokens of the captions that stay vary far less.

Suffix: K samples.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_core.errors import ConfigError
from lens_train.planning.packs import Pack, PlannedSample
from lens_train.planning.permutation import key_of, lots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lens_train.planning.costs import CostModel
    from lens_train.planning.manifest import Manifest

__all__ = ["SampleSource", "Samples"]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Some samples of an epoch, as arrays [K]; see `PlannedSample`. `caption` is -1 where there is none."""

    epoch: int
    number: NDArray[np.int64]
    caption: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    image_tokens: NDArray[np.int64]
    text_tokens: NDArray[np.int64]
    flops: NDArray[np.float64]

    def pack(self, index: int, members: Any) -> Pack:
        """Some of them, as a pack.

        Args:
            index: the pack's number.
            members: places in the arrays, or a slice of them.
        """
        columns = (self.number, self.caption, self.height, self.width, self.image_tokens, self.text_tokens)
        samples = tuple(
            PlannedSample(
                number=number,
                epoch=self.epoch,
                caption=caption if caption >= 0 else None,
                height=height,
                width=width,
                image_tokens=image_tokens,
                text_tokens=text_tokens,
            )
            for number, caption, height, width, image_tokens, text_tokens in zip(
                *(column[members].tolist() for column in columns), strict=True
            )
        )
        return Pack(index=index, samples=samples, flops=float(self.flops[members].sum()))


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """What plans draw from.

    Args:
        manifest: what is trained on.
        costs: of a sample.
        stride: pixels per token, in height and in width.
        seed: the run's seed.
        caption_dropout: share of the samples whose caption is left out.

    Raises:
        ConfigError: a size is no multiple of the stride.
    """

    manifest: Manifest
    costs: CostModel
    stride: int
    seed: int
    caption_dropout: float

    def __post_init__(self) -> None:
        for height, width, _ in self.manifest.sizes:
            if height % self.stride or width % self.stride:
                raise ConfigError(
                    f"{self.manifest.folder} has images of {width}x{height}, no multiple of {self.stride}, the "
                    "autoencoder's stride; build the manifest for this autoencoder"
                )

    def take(self, ranks: NDArray[np.int64], *, epoch: int, group: int) -> Samples:
        """Samples that are taken together.

        Args:
            ranks: their places in the ranking; where these ascend, captions are left out evenly over sizes and lengths.
            epoch: counted from 0.
            group: a number of its own for those that are taken together in an epoch.
        """
        number = self.manifest.take(self.manifest.ranking, ranks)
        records = self.manifest.take(self.manifest.samples, number)
        height, width = records["height"].astype(np.int64), records["width"].astype(np.int64)
        image_tokens = (height // self.stride) * (width // self.stride)
        word, many = records["key"][:, 0], records["captions"].astype(np.int64)
        choice = (lots(word, key_of("caption", self.seed, epoch)) * many).astype(np.int64)
        first = lots(group, key_of("caption dropout", self.seed, epoch))
        crossed = np.floor(first + self.caption_dropout * np.arange(len(word) + 1))
        caption = np.where((np.diff(crossed) > 0) | (many == 0), -1, records["caption_start"] + choice)
        text_tokens = np.zeros(len(caption), dtype=np.int64)
        text_tokens[caption >= 0] = self.manifest.take(self.manifest.captions, caption[caption >= 0])["tokens"]
        return Samples(
            epoch=epoch,
            number=number.astype(np.int64),
            caption=caption,
            height=height,
            width=width,
            image_tokens=image_tokens,
            text_tokens=text_tokens,
            flops=self.costs(image_tokens.astype(np.float64), text_tokens.astype(np.float64)),
        )

    def fingerprint(self, plan: str, **settings: Any) -> str:
        """sha256 (hex) of everything that a plan's packs follow from; `plan` names the algorithm and its version."""
        own = [plan, self.manifest.hash, asdict(self.costs), self.stride, self.seed, self.caption_dropout]
        return hashlib.sha256(json.dumps([own, settings], sort_keys=True).encode()).hexdigest()
