"""Where a pack's images come from: decoded beforehand and kept in memory, or read from shards as they are needed.

Either way the numbers are the same: the image, scaled and cropped to the size it is trained at, by the one decode
function that captioners use too; or the tokens that an autoencoder made of just that. Suffixes: H and W pixels, n
tokens, C channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from lens_core.errors import ImageError, StorageError
from lens_core.images import decode, fit
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lens_train.planning.manifest import Manifest

__all__ = ["ImageSource", "MemoryImages", "Stored", "StoredImages", "StoredLatents"]

_AT_ONCE = 256


class Stored(NamedTuple):
    """Where the bytes of an image are: `shard` is a URL, height and width are those that it is trained at."""

    key: str
    shard: str
    offset: int
    size: int
    height: int
    width: int


class ImageSource(Protocol):
    """Gives images as uint8 [H, W, 3], or as tokens [n, C] of a float dtype.

    One that cannot be read is told in its place: which, where, and why.
    """

    def __call__(self, numbers: Sequence[int]) -> list[Tensor | str]:
        """The images of these samples, in this order."""
        ...


class StoredImages:
    """Reads from shards, at the byte offsets that the manifest has; it may be sent to worker processes.

    Args:
        manifest: the samples.
        shards: the URL of each shard, in the manifest's order.
    """

    def __init__(self, manifest: Manifest, shards: Sequence[str]):
        self._manifest = manifest
        self._shards = list(shards)

    def __call__(self, numbers: Sequence[int]) -> list[Tensor | str]:
        """See `ImageSource`; a store is asked for all of them at once."""
        records = self._manifest.samples[list(numbers)]
        places = [
            (self._shards[shard], offset, size)
            for shard, offset, size in zip(
                *(records[name].tolist() for name in ("shard", "offset", "size")), strict=True
            )
        ]
        images: list[Tensor | str] = []
        for number, record, (shard, _, size), data in zip(
            numbers, records, places, urls.read_ranges(places), strict=True
        ):
            try:
                if isinstance(data, StorageError):
                    raise data
                if len(data) != size:
                    raise StorageError(f"the shard ends within it ({len(data)} of {size} bytes)")
                images.append(self._tensor(data, int(record["height"]), int(record["width"])))
            except (ImageError, StorageError) as error:
                reason = " ".join(str(error).split())
                images.append(f"{shard}: image {self._manifest.key(number)} cannot be read: {reason}")
        return images

    def _tensor(self, data: bytes, height: int, width: int) -> Tensor:
        return _decoded(data, height, width)


class StoredLatents(StoredImages):
    """Reads tokens [n, C] that the stage `encode` made, in the dtype they are stored in: half the bytes to pass on.

    Args:
        manifest: the samples.
        shards: the URL of each shard, in the manifest's order.
        channels: of a token.
        dtype: of the stored tokens.
    """

    def __init__(self, manifest: Manifest, shards: Sequence[str], *, channels: int, dtype: torch.dtype):
        super().__init__(manifest, shards)
        self._channels = channels
        self._dtype = dtype

    def _tensor(self, data: bytes, height: int, width: int) -> Tensor:
        return torch.frombuffer(bytearray(data), dtype=self._dtype).view(-1, self._channels)


class MemoryImages:
    """Images that were decoded beforehand, for sets that fit, where decoding would cost more than training."""

    def __init__(self, images: Mapping[str, Tensor]):
        self._images = images
        self._in_order: list[Tensor | str] = []

    @classmethod
    def decode(cls, stored: Sequence[Stored], on_image: Callable[[int, int], None]) -> Self:
        """Read and decode; what cannot be is left out.

        Args:
            stored: the images.
            on_image: called with (images done, images in all).

        Raises:
            StorageError: a shard cannot be read, or is cut off.
        """
        images: dict[str, Tensor] = {}
        for begin in range(0, len(stored), _AT_ONCE):
            some = stored[begin : begin + _AT_ONCE]
            read = urls.read_ranges([(one.shard, one.offset, one.size) for one in some])
            for one, data in zip(some, read, strict=True):
                if isinstance(data, StorageError):
                    raise data
                if len(data) != one.size:
                    where = f"{one.shard}: the shard ends within image {one.key}"
                    raise StorageError(f"{where} ({len(data)} of {one.size} bytes); make its stage again")
                try:
                    images[one.key] = _decoded(data, one.height, one.width)
                except ImageError:
                    continue  # `ingest` without the filter `decodable` lets such images through
            on_image(min(begin + _AT_ONCE, len(stored)), len(stored))
        return cls(images)

    def has(self, key: str) -> bool:
        """Whether an image could be decoded."""
        return key in self._images

    def of(self, manifest: Manifest) -> Self:
        """The same, in the order of a manifest, which has the bad ones too if it was made without looking at them."""
        ordered = type(self)(self._images)
        keys = [manifest.key(number) for number in range(len(manifest))]
        ordered._in_order = [self._images.get(key, f"image {key} cannot be decoded") for key in keys]
        return ordered

    def __call__(self, numbers: Sequence[int]) -> list[Tensor | str]:
        """See `ImageSource`."""
        return [self._in_order[number] for number in numbers]


def _decoded(data: bytes, height: int, width: int) -> Tensor:
    return torch.from_numpy(np.array(fit(decode(data), height, width)))
