"""Latents: the tokens that an autoencoder makes of images, kept so that training need not make them again.

    latents-00000.safetensors    tensors [n, C], each under its image's key
    latents.parquet              a row per image: where its tensor lies, and the size in pixels that it was made at

A tensor's place in its file is in the index, so that it can be read without opening the file as a whole. They are of
use to one autoencoder only; which, stands in the artefact's `stats`.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from lens_core.storage.tables import read_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

    from lens_core.storage.artifacts import Artifact, OutputFolder

__all__ = ["LATENTS", "LatentRow", "LatentWriter", "read_latents"]

LATENTS = "latents.parquet"

_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("channels", pa.int32(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
    ]
)
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""What safetensors calls them, and what torch does."""


@dataclass(frozen=True, kw_only=True)
class LatentRow:
    """Where an image's tokens lie.

    Args:
        key: of the image.
        shard: file that holds the tensor.
        offset: of its first byte.
        size: how many bytes.
        height: of the image that was encoded, in pixels.
        width: likewise.
        tokens: rows of the tensor.
        channels: columns.
        dtype: such as "bfloat16".
    """

    key: str
    shard: str
    offset: int
    size: int
    height: int
    width: int
    tokens: int
    channels: int
    dtype: str


class LatentWriter:
    """Writes latents into shards, and the index at `close`.

    Shards are made in a folder of the caller's. Those that a killed run left there count as written: see `has`.

    Args:
        output: the artefact's folder.
        folder: where shards are made; it survives a kill.
        max_bytes: a new shard begins once the current one is this large.
    """

    def __init__(self, output: OutputFolder, folder: Path, *, max_bytes: int):
        self._output = output
        self._folder = folder
        self._max_bytes = max_bytes
        self._shard: dict[str, Tensor] = {}
        self._bytes = 0
        self._sizes: dict[str, list[int]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = [row for path in sorted(folder.glob("*.safetensors")) for row in _rows(path)]
        self._written = {row.key for row in self._rows}

    def has(self, key: str) -> bool:
        """Whether an image's tokens are written already."""
        return key in self._written

    def add(self, key: str, tokens_NC: Tensor, *, height: int, width: int) -> None:
        """Append the tokens of an image that was encoded at this size."""
        self._shard[key] = tokens_NC.cpu().contiguous()
        self._bytes += tokens_NC.nbytes
        self._sizes[key] = [height, width]
        if self._bytes >= self._max_bytes:
            self._finish_shard()

    def close(self, keys: Iterable[str]) -> int:
        """Finish the last shard and write the index; returns the number of images.

        Args:
            keys: of all images, in the order that the index shall have: the same, however the work was interrupted.
        """
        self._finish_shard()
        rows = {row.key: row for row in self._rows}
        ordered = [rows[key] for key in keys if key in rows]
        for path in sorted(self._folder.glob("*.safetensors")):
            self._output.add_file(path.name, path)
        columns = {name: [getattr(row, name) for row in ordered] for name in _SCHEMA.names}
        stream = io.BytesIO()
        pq.write_table(pa.table(columns, schema=_SCHEMA), stream, write_page_checksum=True)
        self._output.write_bytes(LATENTS, stream.getvalue())
        return len(ordered)

    def _finish_shard(self) -> None:
        from safetensors.torch import save_file  # noqa: PLC0415 (it imports torch)

        if not self._shard:
            return
        # A kill within `close` may have left gaps: what was in them is encoded again, into files of the same names.
        names = (self._folder / f"latents-{number:05d}.safetensors" for number in count())
        path = next(path for path in names if not path.exists())
        temporary = path.with_suffix(".tmp")
        save_file(self._shard, temporary, metadata={"sizes": json.dumps(self._sizes)})
        temporary.replace(path)
        self._rows += _rows(path)
        self._shard, self._sizes, self._bytes = {}, {}, 0


def read_latents(artifact: Artifact) -> Iterator[LatentRow]:
    """Where the latents of an artefact of type "latents" lie, read a part at a time.

    Raises:
        ArtifactError: the index is missing or damaged.
    """
    return (LatentRow(**row) for part in read_parts(artifact, LATENTS, _SCHEMA) for row in part.to_pylist())


def _rows(path: Path) -> list[LatentRow]:
    """What a shard holds, read off its header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    sizes = json.loads(header.pop("__metadata__")["sizes"])
    rows = []
    for key, entry in header.items():
        begin, end = entry["data_offsets"]
        rows.append(
            LatentRow(
                key=key,
                shard=path.name,
                offset=8 + length + begin,
                size=end - begin,
                height=sizes[key][0],
                width=sizes[key][1],
                tokens=entry["shape"][0],
                channels=entry["shape"][1],
                dtype=_DTYPES[entry["dtype"]],
            )
        )
    return rows
