"""The images that have a caption, from when they are found until they stand in a manifest. N of them."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lens_core.errors import LensError
from lens_core.storage.captions import read_texts
from lens_train.data.images import Stored
from lens_train.data.joined import Joined
from lens_train.planning.manifest_writer import ManifestWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from lens_core.storage.artifacts import Artifact
    from lens_train.data.images import MemoryImages
    from lens_train.data.pictures import Pictures

    Tokenize = Callable[[Sequence[str]], list[list[int]]]
    OnImage = Callable[[int, int], None]

__all__ = ["Captioned", "find_captioned"]

_AT_ONCE = 1024


@dataclass(kw_only=True)
class Captioned:
    """Made by `find_captioned`.

    Args:
        places_N: where each lies, and at which size it is trained.
        numbers_N: of each in `joined`.
        joined: their captions.
        shards: names.
    """

    places_N: NDArray[Any]
    numbers_N: NDArray[np.int64]
    joined: Joined
    shards: list[str]

    @property
    def decoded_bytes(self) -> int:
        """What they take when they are decoded."""
        return int((self.places_N["height"].astype(np.int64) * self.places_N["width"] * 3).sum())

    @property
    def words_N(self) -> NDArray[np.uint64]:
        """The first eight bytes of each key."""
        return np.ascontiguousarray(self.places_N["key"]).view(">u8")[::4].astype(np.uint64)

    def stored(self, pictures: Pictures) -> list[Stored]:
        """Where the bytes of each are."""
        urls = pictures.urls(self.shards)
        return [
            Stored(_hex(key), urls[shard], offset, size, height, width)
            for key, shard, offset, size, height, width in self.places_N.tolist()
        ]

    def drop(self, kept: MemoryImages) -> list[str]:
        """Keep only what could be decoded; the keys of the others.

        Raises:
            LensError: that is all of them.
        """
        keys = [_hex(key) for key in self.places_N["key"]]
        decoded_N = np.array([kept.has(key) for key in keys])
        if not decoded_N.any():
            raise LensError("none of the captioned images can be decoded")
        self.places_N, self.numbers_N = self.places_N[decoded_N], self.numbers_N[decoded_N]
        return [key for key, decoded in zip(keys, decoded_N, strict=True) if not decoded]

    def write(
        self,
        folder: Path,
        apart: Path,
        held_N: NDArray[np.bool_] | None,
        tokenize: Tokenize,
        *,
        on_image: OnImage | None,
    ) -> None:
        """Write the manifests; what is trained on comes last, and says that all is there.

        Args:
            folder: of those that are trained on.
            apart: of those that are held out.
            held_N: whether each is; None if none are.
            tokenize: counts the captions' tokens.
            on_image: called with (images written, images in all).
        """
        shutil.rmtree(apart, ignore_errors=True)  # the rest of a build that was killed
        count = len(self.places_N)
        with ExitStack() as opened:
            into = {False: opened.enter_context(ManifestWriter(folder))}
            if held_N is None:
                held_N = np.zeros(count, np.bool_)
            else:
                into[True] = opened.enter_context(ManifestWriter(apart))
            for begin in range(0, count, _AT_ONCE):
                some = slice(begin, min(begin + _AT_ONCE, count))
                texts = [self.joined.texts(number) for number in self.numbers_N[some].tolist()]
                counts = iter(tokenize([text for own in texts for text in own]))
                for place, held, own in zip(self.places_N[some].tolist(), held_N[some].tolist(), texts, strict=True):
                    key, shard, offset, size, height, width = place
                    into[held].add(
                        key=_hex(key),
                        shard=shard,
                        offset=offset,
                        size=size,
                        height=height,
                        width=width,
                        captions=[(text, len(next(counts))) for text in own],
                    )
                if on_image:
                    on_image(some.stop, count)
            for held in sorted(into, reverse=True):
                into[held].close(self.shards)


def find_captioned(
    pictures: Pictures, captions: Artifact, layers: list[str] | None, folder: Path, *, on_part: Callable[[], None]
) -> Captioned:
    """Bring captions to their images, and choose the size of each.

    Args:
        pictures: the images.
        captions: of them.
        layers: of captions; None means all.
        folder: for the texts on the way.
        on_part: called now and then.

    Raises:
        LensError: no image has a caption, or sizes do not fit.
    """
    places, shards = pictures.places()
    joined = Joined(places["key"], read_texts(captions, layers=layers), folder, on_part)
    if not joined.captions:
        raise LensError(f"{captions.url}: no image has a caption to train on")
    numbers_N = np.flatnonzero(joined.counts_N)
    if not len(numbers_N):
        raise LensError(f"{pictures.artifact.url}: none of its images has a caption in {captions.url}")
    places_N = places[numbers_N]
    if pictures.one_size and any((places_N[side] != places_N[side][0]).any() for side in ("height", "width")):
        raise LensError("the images have different sizes; say what to train on, for example image_size: 64")
    for place in places_N:  # a view of its record
        size = pictures.size_of(int(place["height"]), int(place["width"]), _hex(place["key"]))
        place["height"], place["width"] = size
    return Captioned(places_N=places_N, numbers_N=numbers_N, joined=joined, shards=shards)


def _hex(key: bytes) -> str:
    return key.ljust(32, b"\0").hex()  # numpy takes zeros from the end of bytes
