"""Shards: images in tar files that WebDataset reads, with an index of byte offsets for random access.

A shard holds, per image, `<key>.<ext>` (the stored bytes, unchanged) and `<key>.json` (its metadata). The index,
`index.parquet`, has a row per image, so that size, name and offset are known without opening a tar. Tars are written
with fixed times and owners: the same images give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lens_core.errors import ArtifactError, StorageError
from lens_core.storage import urls
from lens_core.storage.tables import read_parts

if TYPE_CHECKING:
    from pathlib import Path

    from lens_core.storage.artifacts import Artifact, OutputFolder

__all__ = ["INDEX", "ImageRow", "ShardReader", "ShardWriter", "image_key"]

INDEX = "index.parquet"
MAX_SHARD_BYTES = 256 << 20
_OPEN_SHARDS = 16

_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("source_url", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """A stored image. `key` is the sha256 of `data`; width and height are as displayed."""

    key: str
    name: str
    data: bytes
    width: int
    height: int
    format: str
    licence: str = ""
    source_url: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def image_key(data: bytes) -> str:
    """The key of an image: sha256 (hex) of its stored bytes."""
    return hashlib.sha256(data).hexdigest()


class ShardWriter:
    """Writes images into shards, and the index at `close`; a `with` block closes it unless something was raised.

    Args:
        output: the artefact's folder.
        max_bytes: a new shard begins once the current one is this large.
    """

    def __init__(self, output: OutputFolder, *, max_bytes: int = MAX_SHARD_BYTES):
        self._output = output
        self._max_bytes = max_bytes
        self._folder = output.local_dir("shards")
        self._columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
        self._number = 0
        self._file: BinaryIO | None = None
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        if raised is None:
            self.close()
        elif self._file is not None:
            self._file.close()

    def add(self, row: ImageRow) -> None:
        """Append an image."""
        if self._tar is None or self._file is None:
            self._file = self._path.open("wb")
            self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        metadata = json.dumps(dict(row.metadata), sort_keys=True, ensure_ascii=False)
        self._add_file(f"{row.key}.{_extension(row.format)}", row.data)
        # The tar's stream is unbuffered towards the file: the data ends, padded to 512 bytes, where we are now.
        offset = self._tar.offset - _padded(len(row.data))
        self._add_file(f"{row.key}.json", metadata.encode())
        values = (row.key, row.name, self._path.name, offset, len(row.data), row.width, row.height, row.format)
        for name, value in zip(_SCHEMA.names, (*values, row.licence, row.source_url, metadata), strict=True):
            self._columns[name].append(value)
        if self._tar.offset >= self._max_bytes:
            self._finish_shard()

    def close(self) -> int:
        """Finish the last shard and write the index; returns the number of images."""
        self._finish_shard()
        stream = io.BytesIO()
        pq.write_table(pa.table(self._columns, schema=_SCHEMA), stream, write_page_checksum=True)
        self._output.write_bytes(INDEX, stream.getvalue())
        return len(self._columns["key"])

    @property
    def _path(self) -> Path:
        return self._folder / f"shard-{self._number:05d}.tar"

    def _add_file(self, name: str, data: bytes) -> None:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self._tar.addfile(info, io.BytesIO(data))

    def _finish_shard(self) -> None:
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.close()
        self._output.add_file(self._path.name, self._path)
        self._tar = self._file = None
        self._number += 1


class ShardReader(Sequence[ImageRow]):
    """Random access to the images of an artefact of type "images".

    Raises:
        ArtifactError: the index or a shard is missing or damaged.
    """

    def __init__(self, artifact: Artifact):
        self._artifact = artifact
        self.columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
        for part in read_parts(artifact, INDEX, _SCHEMA):
            for name, values in part.to_pydict().items():
                self.columns[name] += values
        self._by_key = {key: number for number, key in enumerate(self.columns["key"])}
        self._streams: OrderedDict[str, BinaryIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self.columns["key"])

    def __getitem__(self, number: Any) -> Any:
        row = {name: values[number] for name, values in self.columns.items()}
        shard, offset, size = row.pop("shard"), row.pop("offset"), row.pop("size")
        try:
            stream = self._stream(shard)
            with urls.told(self._artifact.url_of(shard), "read"):
                stream.seek(offset)
                data = stream.read(size)
        except StorageError as error:
            raise ArtifactError(str(error)) from error
        if len(data) != size:
            raise ArtifactError(f"{self._artifact.url_of(shard)} is truncated: image {row['name']!r} is not all there")
        return ImageRow(data=data, metadata=json.loads(row.pop("metadata")), **row)

    def __iter__(self) -> Iterator[ImageRow]:
        return (self[number] for number in range(len(self)))

    def has(self, key: str) -> bool:
        """Whether there is an image of that key."""
        return key in self._by_key

    def by_key(self, key: str) -> ImageRow:
        """The image of that key; `KeyError` if there is none."""
        row: ImageRow = self[self._by_key[key]]
        return row

    def _stream(self, shard: str) -> BinaryIO:
        """The shard, opened; of many, those stay open that were read last."""
        if shard not in self._streams:
            self._streams[shard] = self._artifact.open(shard)
            if len(self._streams) > _OPEN_SHARDS:
                self._streams.popitem(last=False)[1].close()
        self._streams.move_to_end(shard)
        return self._streams[shard]

    def close(self) -> None:
        """Close the shards."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()


def _extension(format_: str) -> str:
    return {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif"}.get(format_, format_)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
