"""The formats. A writer takes rows one by one and leaves its files below `data/` in the artefact.

Image bytes are written as they are stored, never decoded or encoded again. The same rows give the same files, except
for Lance, which numbers its files at random.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from lens_caption.export.rows import text_columns
from lens_core.errors import MissingExtraError
from lens_core.specs import pip_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from lens_caption.export.rows import ExportRow
    from lens_core.storage.artifacts import OutputFolder

__all__ = ["DATA", "WRITERS", "Writer", "flat_schema"]

DATA = "data"
_GROUP_ROWS = 100
_GROUP_BYTES = 32 << 20
# Some readers end a line at these too; JSON lets them be escaped.
_OTHER_LINE_ENDS = {number: f"\\u{number:04x}" for number in (0x85, 0x2028, 0x2029)}


class Writer(Protocol):
    """Takes rows, then is closed."""

    def add(self, row: ExportRow) -> None:
        """Write an image."""

    def close(self) -> None:
        """Finish the files; there are none if nothing was added."""


def flat_schema(layers: Sequence[str], image: pa.Field | None) -> pa.Schema:
    """The columns of `ExportRow.columns`, with the image's column after the first two."""
    texts = ("text", *text_columns(layers).values())
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            *([image] if image is not None else []),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("format", pa.string(), nullable=False),
            pa.field("licence", pa.string(), nullable=False),
            pa.field("source_url", pa.string(), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            *(pa.field(name, pa.string()) for name in texts),
            pa.field("captions", pa.string(), nullable=False),
        ]
    )


class WebDatasetWriter:
    """Tars with `KEY.jpg` (or whatever it is), `KEY.txt` and `KEY.json`."""

    def __init__(self, output: OutputFolder, layers: Sequence[str], shard_bytes: int):
        self._output = output
        self._max_bytes = shard_bytes
        self._folder = output.local_dir("webdataset")
        self._number = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, row: ExportRow) -> None:
        """Append an image."""
        if self._tar is None:
            self._tar = tarfile.TarFile(self._path, mode="w", format=tarfile.USTAR_FORMAT)
        self._file(row.file_name, row.image.data)
        if row.text is not None:
            self._file(f"{row.image.key}.txt", row.text.encode())
        document = json.dumps(row.document(), sort_keys=True, ensure_ascii=False)
        self._file(f"{row.image.key}.json", document.encode())
        if self._tar.offset >= self._max_bytes:
            self.close()

    def close(self) -> None:
        """Finish the current tar."""
        if self._tar is None:
            return
        self._tar.close()
        self._output.add_file(f"{DATA}/{self._path.name}", self._path)
        self._tar = None
        self._number += 1

    @property
    def _path(self) -> Path:
        return self._folder / f"shard-{self._number:05d}.tar"

    def _file(self, name: str, data: bytes) -> None:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        self._tar.addfile(info, io.BytesIO(data))


class _Buffer:
    """Rows until there are enough for a record batch."""

    def __init__(self, schema: pa.Schema, layers: Sequence[str], image: Callable[[ExportRow], Any] | None):
        self.schema = schema
        self._layers = layers
        self._image = image
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: ExportRow) -> pa.RecordBatch | None:
        """Take a row; gives a batch now and then."""
        columns = row.columns(self._layers)
        if self._image is not None:
            columns["image"] = self._image(row)
            self._bytes += len(row.image.data)
        self._rows.append(columns)
        # Readers of one image read its whole row group, so groups are small.
        return self.take() if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES else None

    def take(self) -> pa.RecordBatch | None:
        """The rest."""
        rows, self._rows, self._bytes = self._rows, [], 0
        return pa.RecordBatch.from_pylist(rows, schema=self.schema) if rows else None


class ParquetWriter:
    """Parquet files with the image's bytes in the column `image`."""

    def __init__(self, output: OutputFolder, layers: Sequence[str], shard_bytes: int):
        self._output = output
        self._max_bytes = shard_bytes
        self._folder = output.local_dir("parquet")
        schema = flat_schema(layers, pa.field("image", pa.large_binary(), nullable=False))
        self._buffer = _Buffer(schema, layers, lambda row: row.image.data)
        self._number = 0
        self._bytes = 0
        self._file: pq.ParquetWriter | None = None

    def add(self, row: ExportRow) -> None:
        """Append an image."""
        self._write(self._buffer.add(row))

    def close(self) -> None:
        """Finish the last file."""
        self._write(self._buffer.take())
        self._finish()

    def _write(self, batch: pa.RecordBatch | None) -> None:
        if batch is None:
            return
        path = self._folder / f"data-{self._number:05d}.parquet"
        if self._file is None:
            # Image bytes are compressed already, and never repeat: no dictionary.
            self._file = pq.ParquetWriter(
                path,
                batch.schema,
                compression={name: "none" if name == "image" else "zstd" for name in batch.schema.names},
                use_dictionary=["format", "licence"],
                write_page_checksum=True,
            )
        self._file.write_batch(batch, row_group_size=_GROUP_ROWS)
        self._bytes += batch.nbytes
        if self._bytes >= self._max_bytes:
            self._finish()

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.close()
        name = f"data-{self._number:05d}.parquet"
        self._output.add_file(f"{DATA}/{name}", self._folder / name)
        self._file = None
        self._bytes = 0
        self._number += 1


class ImageFolderWriter:
    """Hugging Face's `imagefolder`: image files and one table, whose `file_name` says which row is whose."""

    def __init__(self, output: OutputFolder, layers: Sequence[str], shard_bytes: int, metadata: str = "jsonl"):
        self._output = output
        self._layers = layers
        self._path = output.local_dir("imagefolder") / f"metadata.{metadata}"
        schema = flat_schema(layers, None).insert(0, pa.field("file_name", pa.string(), nullable=False))
        self._schema = schema
        self._lines: BinaryIO | None = self._path.open("wb") if metadata == "jsonl" else None
        self._table: pq.ParquetWriter | None = pq.ParquetWriter(self._path, schema) if metadata == "parquet" else None
        self._rows: list[dict[str, Any]] = []
        self._count = 0

    def add(self, row: ExportRow) -> None:
        """Write an image file and its line."""
        # Folders of at most some thousands of files: the first two digits of a hash spread evenly.
        name = f"images/{row.image.key[:2]}/{row.file_name}"
        self._output.write_bytes(f"{DATA}/{name}", row.image.data)
        self._rows.append({"file_name": name, **row.columns(self._layers)})
        self._count += 1
        if len(self._rows) >= 1000:
            self._flush()

    def close(self) -> None:
        """Write the table; last, so that a folder that was cut off has none."""
        self._flush()
        for file in (self._lines, self._table):
            if file is not None:
                file.close()
        if self._count:
            self._output.add_file(f"{DATA}/{self._path.name}", self._path)

    def _flush(self) -> None:
        if self._lines is not None:
            for row in self._rows:
                line = json.dumps(row, ensure_ascii=False).translate(_OTHER_LINE_ENDS)
                self._lines.write(line.encode() + b"\n")
        if self._table is not None and self._rows:
            self._table.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows = []


class DatasetsWriter:
    """The folder that Hugging Face's `datasets.load_from_disk` opens: Arrow streams, and two files that describe them.

    It is written without that library, which is needed only by who reads it.
    """

    def __init__(self, output: OutputFolder, layers: Sequence[str], shard_bytes: int):
        self._output = output
        self._max_bytes = shard_bytes
        self._folder = output.local_dir("datasets")
        image = pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]))
        plain = flat_schema(layers, image)
        # The library knows no columns that may not be null.
        plain = pa.schema([field.with_nullable(True) for field in plain])
        self._features = {
            field.name: {"_type": "Image"} if field.name == "image" else _feature(field.type) for field in plain
        }
        described = json.dumps({"info": {"features": self._features}})
        schema = plain.with_metadata({"huggingface": described})
        self._buffer = _Buffer(schema, layers, lambda row: {"bytes": row.image.data, "path": row.file_name})
        self._paths: list[Path] = []
        self._bytes = 0
        self._digest = hashlib.sha256(described.encode())
        self._file: pa.ipc.RecordBatchStreamWriter | None = None

    def add(self, row: ExportRow) -> None:
        """Append an image."""
        self._digest.update(row.image.key.encode() + (row.text or "").encode())
        self._write(self._buffer.add(row))

    def close(self) -> None:
        """Finish: only now is the number of files known, which stands in the name of each."""
        self._write(self._buffer.take())
        self._finish()
        if not self._paths:
            return
        names = [f"data-{number:05d}-of-{len(self._paths):05d}.arrow" for number in range(len(self._paths))]
        for name, path in zip(names, self._paths, strict=True):
            self._output.add_file(f"{DATA}/{name}", path)
        self._output.write_json(
            f"{DATA}/dataset_info.json",
            {"citation": "", "description": "", "features": self._features, "homepage": "", "license": ""},
        )
        self._output.write_json(
            f"{DATA}/state.json",
            {
                "_data_files": [{"filename": name} for name in names],
                "_fingerprint": self._digest.hexdigest()[:16],
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": None,
            },
        )

    def _write(self, batch: pa.RecordBatch | None) -> None:
        if batch is None:
            return
        if self._file is None:
            self._paths.append(self._folder / f"{len(self._paths)}.arrow")
            self._file = pa.ipc.new_stream(str(self._paths[-1]), batch.schema)
        self._file.write_batch(batch)
        self._bytes += batch.nbytes
        if self._bytes >= self._max_bytes:
            self._finish()

    def _finish(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
        self._bytes = 0


class LanceWriter:
    """A Lance dataset with the image's bytes in the column `image`.

    Raises:
        MissingExtraError: the library is not installed.
    """

    def __init__(self, output: OutputFolder, layers: Sequence[str], shard_bytes: int):
        try:
            self._lance = importlib.import_module("lance")
        except ModuleNotFoundError as error:
            hint = pip_line("lens-caption[lance]")
            raise MissingExtraError(
                f"the format 'lance' needs the library 'pylance', which is not installed; install it with: {hint}"
            ) from error
        self._output = output
        self._max_bytes = shard_bytes
        self._folder = output.local_dir("lance")
        schema = flat_schema(layers, pa.field("image", pa.large_binary(), nullable=False))
        self._buffer = _Buffer(schema, layers, lambda row: row.image.data)
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._mode = "create"

    def add(self, row: ExportRow) -> None:
        """Append an image."""
        batch = self._buffer.add(row)
        if batch is not None:
            self._batches.append(batch)
            self._bytes += batch.nbytes
            # Every append is a version of the dataset; few and large ones keep it quick.
            if self._bytes >= self._max_bytes:
                self._append()

    def close(self) -> None:
        """Write the rest and move the dataset in."""
        batch = self._buffer.take()
        self._batches += [batch] if batch is not None else []
        self._append()
        if self._mode == "append":
            self._output.add_folder(f"{DATA}.lance", self._folder / "data.lance")

    def _append(self) -> None:
        if not self._batches:
            return
        table = pa.Table.from_batches(self._batches, schema=self._buffer.schema)
        self._lance.write_dataset(table, str(self._folder / "data.lance"), mode=self._mode)
        self._batches, self._bytes, self._mode = [], 0, "append"


def _feature(type_: pa.DataType) -> dict[str, str]:
    return {"dtype": str(type_), "_type": "Value"}


WRITERS: dict[str, Callable[..., Writer]] = {
    "webdataset": WebDatasetWriter,
    "parquet": ParquetWriter,
    "imagefolder": ImageFolderWriter,
    "datasets": DatasetsWriter,
    "lance": LanceWriter,
}
