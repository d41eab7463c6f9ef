"""The images of a run, or the latents in their place: where each lies, and at which size it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from lens_core.errors import ConfigError, LensError
from lens_core.storage.latents import LATENTS, read_latents
from lens_core.storage.shards import INDEX
from lens_core.storage.tables import count_rows, read_parts
from lens_train.data.sizing import size_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from lens_core.storage.artifacts import Artifact
    from lens_train.data.config import ImageSize

__all__ = ["PLACE", "Pictures", "images_of", "latents_of"]

PLACE = np.dtype([("key", "S32"), ("shard", "u4"), ("offset", "i8"), ("size", "u4"), ("height", "u4"), ("width", "u4")])
"""Of each image 56 bytes, as tables of millions are in memory while their manifest is built."""
_COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)
"""What the indexes of images and of latents have in common."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The images of a run, of which nothing is read until it is asked for.

    Args:
        artifact: whose shards they lie in.
        index: the table in it that says where.
        size_of: from (height, width, key) to the (height, width) that an image is trained at.
        one_size: whether they must all have the same.
        latents: if it is their tokens that are stored, the channels and the dtype of these.
    """

    artifact: Artifact
    index: str
    size_of: Callable[[int, int, str], tuple[int, int]]
    one_size: bool = False
    latents: tuple[int, torch.dtype] | None = None

    def __len__(self) -> int:
        return count_rows(self.artifact, self.index)

    def urls(self, shards: Sequence[str]) -> list[str]:
        """Where these shards are."""
        return [self.artifact.url_of(shard) for shard in shards]

    def places(self) -> tuple[NDArray[Any], list[str]]:
        """The whole index: a record of `PLACE` for each image, its size as stored, and the names of the shards.

        Raises:
            ArtifactError: the index is missing or damaged.
        """
        places = np.empty(len(self), PLACE)
        number_of: dict[str, int] = {}
        begin = 0
        for part in read_parts(self.artifact, self.index, _COLUMNS):
            columns, records = part.to_pydict(), places[begin : begin + len(part)]
            records["key"] = [bytes.fromhex(key) for key in columns["key"]]
            records["shard"] = [number_of.setdefault(shard, len(number_of)) for shard in columns["shard"]]
            for name in ("offset", "size", "height", "width"):
                records[name] = columns[name]
            begin += len(part)
        return places, list(number_of)


def images_of(captions: Artifact, *, image_size: ImageSize | None, stride: int, seed: int) -> Pictures:
    """The images that captions are of, found through their lineage.

    Args:
        captions: the artefact.
        image_size: what images are scaled and cropped to; None keeps the size that all of them share.
        stride: the autoencoder's.
        seed: the run's.

    Raises:
        ConfigError: the size does not fit the autoencoder.
    """
    return Pictures(
        artifact=captions.parent("images"),
        index=INDEX,
        size_of=size_rule(image_size, stride=stride, seed=seed),
        one_size=image_size is None,
    )


def latents_of(latents: Artifact, *, autoencoder: str) -> Pictures:
    """Images as the stage `encode` left them.

    Args:
        latents: its artefact.
        autoencoder: the identity of the one that the model shall have.

    Raises:
        ConfigError: they were made by another.
        LensError: there are none.
    """
    made_by = latents.stats.get("autoencoder")
    if made_by != autoencoder:
        raise ConfigError(
            f"the latents of {latents.name!r} were made by another autoencoder ({str(made_by)[:12]}) than this model "
            f"has ({autoencoder[:12]}): give both stages the same one",
            key="autoencoder",
        )
    first = next(read_latents(latents), None)
    if first is None:
        raise LensError(f"{latents.url}: no image is encoded in it")
    return Pictures(
        artifact=latents,
        index=LATENTS,
        size_of=lambda height, width, key: (height, width),
        latents=(first.channels, getattr(torch, first.dtype)),
    )
