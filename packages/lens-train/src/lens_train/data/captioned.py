"""Captioned images in memory, and the batches cut from them.

A batch is a pure function of (seed, step): epochs are permutations by counter, and a sample's noise, timestep and
caption dropout are keyed by (seed, epoch, image key), never drawn from a stream. To resume is to know one integer, and
a sample's share of the loss does not depend on its neighbours.

Suffixes: K images of the set, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lens_core.diffusion.counter_noise import uniform
from lens_core.errors import ImageError, LensError
from lens_core.images import decode, fit
from lens_core.storage.captions import read_captions
from lens_core.storage.shards import ShardReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_core.storage.artifacts import Artifact

__all__ = ["CaptionedImages", "Sample", "epoch_order", "load_captioned"]

MAX_BYTES = 8 << 30
"""Decoded images are kept in memory, up to this much."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image's turn in one epoch."""

    number: int
    key: str
    caption: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class CaptionedImages:
    """Images of one size with their captions.

    Args:
        pixels: uint8 [K, H, W, 3].
        keys: their keys.
        captions: for each image, its captions in the layers asked for.
        skipped: images left out because they have no caption, or cannot be decoded.
        seed: of the order and of the choice among several captions.
    """

    pixels: np.ndarray
    keys: list[str]
    captions: list[list[str]]
    skipped: int
    seed: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def batch(self, step: int, size: int) -> list[Sample]:
        """The samples of a step, counted from 0: positions step·size … of the endless sequence of epochs."""
        samples = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, len(self.keys))
            number = int(epoch_order(self.seed, epoch, len(self.keys))[place])
            key, captions = self.keys[number], self.captions[number]
            choice = 0
            if len(captions) > 1:
                choice = int(uniform(self.seed, ("caption", epoch, key), (1,)).item() * len(captions))
            samples.append(Sample(number=number, key=key, caption=captions[choice], epoch=epoch))
        return samples


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The permutation of an epoch, by counter."""
    return np.argsort(uniform(seed, ("epoch", epoch), (count,)).numpy(), kind="stable")


def load_captioned(
    artifact: Artifact,
    *,
    layers: list[str] | None,
    size: tuple[int, int] | None,
    stride: int,
    seed: int,
    on_image: Callable[[int, int], None],
) -> CaptionedImages:
    """Decode every captioned image of an artefact of type "captions".

    Args:
        artifact: the captions; the images are found through its lineage.
        layers: caption layers to train on; None means all.
        size: (height, width) to scale and crop to; None keeps the images' own size, if they share one.
        stride: what height and width must be multiples of.
        seed: see `CaptionedImages`.
        on_image: called with (images done, images in all).

    Raises:
        LensError: nothing has a caption, sizes differ and none is asked for, or it would not fit in memory.
    """
    by_key: dict[str, list[str]] = {}
    for row in read_captions(artifact, layers=layers):
        if row.status == "ok":
            by_key.setdefault(row.key, []).append(row.text)
    reader = ShardReader(artifact.parent("images"))
    numbers = [number for number, key in enumerate(reader.columns["key"]) if key in by_key]
    if not numbers:
        raise LensError(f"{artifact.url}: no image has a caption to train on")
    height, width = size or _common_size(reader, numbers)
    if height % stride or width % stride:
        raise LensError(f"image_size: {width}x{height} is not a multiple of {stride}, the autoencoder's stride")
    if len(numbers) * height * width * 3 > MAX_BYTES:
        raise LensError(
            f"{len(numbers):,} images of {width}x{height} take more than {MAX_BYTES >> 30} GiB; "
            "use a smaller image_size"
        )
    pixels = np.empty((len(numbers), height, width, 3), dtype=np.uint8)
    keys: list[str] = []
    for done, number in enumerate(numbers, start=1):
        row = reader[number]
        try:
            pixels[len(keys)] = fit(decode(row.data), height, width)
        except ImageError:
            continue  # counted below: `ingest` without the filter `decodable` may let such images through
        keys.append(row.key)
        if done % 256 == 0:
            on_image(done, len(numbers))
    reader.close()
    if not keys:
        raise LensError(f"{artifact.url}: none of the captioned images can be decoded")
    return CaptionedImages(
        pixels=pixels[: len(keys)],
        keys=keys,
        captions=[by_key[key] for key in keys],
        skipped=len(reader) - len(keys),
        seed=seed,
    )


def _common_size(reader: ShardReader, numbers: list[int]) -> tuple[int, int]:
    sizes = {(reader.columns["height"][number], reader.columns["width"][number]) for number in numbers}
    if len(sizes) > 1:
        raise LensError("the images have different sizes; say what to train on, for example image_size: 64")
    (size,) = sizes
    return size
