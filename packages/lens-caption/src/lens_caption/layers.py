"""Images and their caption layers, read in batches: a million rows pass through, and never lie in memory at once.

What exports, reports and reviews share. Rows of an image are found by key; which table they come from, and in which
order, does not matter.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lens_core.errors import ArtifactError, ConfigError, StorageError
from lens_core.storage.captions import CAPTIONS, CaptionRow
from lens_core.storage.shards import INDEX, ImageRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from lens_core.storage.artifacts import Artifact

__all__ = [
    "IMAGE_COLUMNS",
    "CaptionSource",
    "ImageLookup",
    "LayerStore",
    "StoredImages",
    "caption_batches",
    "caption_rows",
    "index_batches",
    "layer_names",
    "sources",
]

BATCH_ROWS = 2048
IMAGE_COLUMNS = (
    "key",
    "name",
    "shard",
    "offset",
    "size",
    "width",
    "height",
    "format",
    "licence",
    "source_url",
    "metadata",
)
_PLACE = ("key", "name", "shard", "offset", "size")
CAPTION_COLUMNS = ("key", "layer", "text", "status", "detail", "words", "provenance")


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """What a stage works on: one set of images, and the artefacts that hold captions of it."""

    images: Artifact
    captions: tuple[Artifact, ...]


def sources(inputs: Iterable[Artifact]) -> CaptionSource:
    """Sort a stage's inputs.

    Raises:
        ConfigError: there are no captions, or the captions are of different sets of images.
        ArtifactError: captions descend from no images, or from some that have been made anew since.
    """
    inputs = list(inputs)
    captions = tuple(artifact for artifact in inputs if artifact.type == "captions")
    if not captions:
        raise ConfigError("no captions among the sources: name at least one caption stage")
    images = {made.hash: made for made in (artifact.parent("images") for artifact in inputs)}
    if len(images) > 1:
        names = " and ".join(sorted(made.url for made in images.values()))
        raise ConfigError(f"the sources are of different sets of images ({names}); use one stage for each set")
    return CaptionSource(images=next(iter(images.values())), captions=captions)


def caption_batches(
    artifact: Artifact, columns: Sequence[str] = CAPTION_COLUMNS, *, rows: int = BATCH_ROWS
) -> Iterator[dict[str, list[Any]]]:
    """Columns of a caption table as lists, some rows at a time.

    Raises:
        ArtifactError: the table is missing or damaged.
    """
    return _batches(artifact, CAPTIONS, columns, rows)


def index_batches(
    images: Artifact, columns: Sequence[str] = IMAGE_COLUMNS, *, rows: int = BATCH_ROWS
) -> Iterator[dict[str, list[Any]]]:
    """Columns of the index of a set of images as lists, some rows at a time.

    Raises:
        ArtifactError: the index is missing or damaged.
    """
    return _batches(images, INDEX, columns, rows)


def _batches(artifact: Artifact, file: str, columns: Sequence[str], rows: int) -> Iterator[dict[str, list[Any]]]:
    try:
        stream = artifact.open(file)
    except StorageError as error:
        raise ArtifactError(str(error)) from error
    try:
        # Without the buffer in advance a table that is one row group is not read as a whole.
        table = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
        missing = set(columns) - set(table.schema_arrow.names)
        if missing:
            raise ArtifactError(f"{artifact.url_of(file)} is damaged: it has no column {sorted(missing)[0]!r}")
        for batch in table.iter_batches(batch_size=rows, columns=list(columns)):
            yield batch.to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{artifact.url_of(file)} is damaged: {' '.join(str(error).split())}") from error
    finally:
        stream.close()


def caption_rows(artifact: Artifact, layers: Sequence[str] | None = None) -> Iterator[CaptionRow]:
    """The rows of a caption table, one after the other; only those of `layers`, if any are named.

    Raises:
        ArtifactError: the table is missing or damaged.
    """
    for batch in caption_batches(artifact):
        rows = zip(*(batch[name] for name in CAPTION_COLUMNS if name != "words"), strict=True)
        for key, layer, text, status, detail, provenance in rows:
            if layers is None or layer in layers:
                yield CaptionRow(
                    key=key, layer=layer, text=text, status=status, detail=detail, provenance=json.loads(provenance)
                )


def layer_names(artifact: Artifact) -> list[str]:
    """The layers that a caption table has, in the order in which they are met; raises `ArtifactError`."""
    return list(dict.fromkeys(layer for batch in caption_batches(artifact, ["layer"]) for layer in batch["layer"]))


class StoredImages:
    """The images of an artefact, one after another or by key, without an index in memory; use it in a `with` block."""

    def __init__(self, artifact: Artifact):
        self._artifact = artifact
        self._name = ""
        self._stream: BinaryIO | None = None

    def __enter__(self) -> StoredImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where they lie."""
        return self._artifact.url

    def close(self) -> None:
        """Close the shard that is open."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def batches(self, *, rows: int = 256) -> Iterator[list[dict[str, Any]]]:
        """Rows of the index as mappings, some at a time."""
        for columns in index_batches(self._artifact, rows=rows):
            yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def find(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Rows of the index by key, of those keys that are there."""
        wanted = set(keys)
        found: dict[str, dict[str, Any]] = {}
        for batch in self.batches(rows=BATCH_ROWS) if wanted else ():
            found |= {row["key"]: row for row in batch if row["key"] in wanted}
            if len(found) == len(wanted):
                break
        return found

    def read(self, row: Mapping[str, Any]) -> ImageRow:
        """The image that a row of the index tells of; raises as `read_bytes` does."""
        data = self.read_bytes(row)
        facts = {name: row[name] for name in ("key", "name", "width", "height", "format", "licence", "source_url")}
        return ImageRow(data=data, metadata=json.loads(row["metadata"]), **facts)

    def read_bytes(self, row: Mapping[str, Any]) -> bytes:
        """Its bytes alone.

        Raises:
            ArtifactError: its shard is gone or shorter than the index says.
        """
        shard = row["shard"]
        try:
            if self._stream is None or shard != self._name:
                if self._stream is not None:
                    self._stream.close()
                self._stream, self._name = self._artifact.open(shard), shard
            self._stream.seek(row["offset"])
            data = self._stream.read(row["size"])
        except StorageError as error:
            raise ArtifactError(str(error)) from error
        if len(data) != row["size"]:
            raise ArtifactError(f"{self._artifact.url_of(shard)} is truncated: image {row['name']!r} is not all there")
        return data


class ImageLookup:
    """Images by key, in any order: the index lies in a scratch database, and not in memory.

    Args:
        path: a file that does not exist yet, on a local disk.
        images: the artefact.

    Raises:
        ArtifactError: the index is missing or damaged.
    """

    def __init__(self, path: Path, images: Artifact):
        self._images = StoredImages(images)
        # The engine reads images in threads, in one at a time.
        self._database = sqlite3.connect(path, check_same_thread=False)
        self._database.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE images (key TEXT PRIMARY KEY, name TEXT, shard TEXT, offset INTEGER, size INTEGER)"
        )
        for batch in index_batches(images, _PLACE):
            rows = zip(*(batch[name] for name in _PLACE), strict=True)
            self._database.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)", rows)
        self._database.commit()

    def row(self, key: str) -> dict[str, Any] | None:
        """Key, name and place of an image; None if there is no such image."""
        found = self._database.execute("SELECT * FROM images WHERE key = ?", (key,)).fetchone()
        return None if found is None else dict(zip(_PLACE, found, strict=True))

    def data(self, key: str) -> bytes:
        """The bytes of an image.

        Raises:
            ArtifactError: there is none of that key, or its shard is damaged.
        """
        row = self.row(key)
        if row is None:
            raise ArtifactError(f"there is a caption for the image {key}, which is not in {self._images.url}")
        return self._images.read_bytes(row)

    def close(self) -> None:
        """Close what is open."""
        self._images.close()
        self._database.close()


_TABLE = """
CREATE TABLE captions (
    key TEXT NOT NULL, layer INTEGER NOT NULL, text TEXT NOT NULL, status TEXT NOT NULL, detail TEXT NOT NULL,
    provenance TEXT NOT NULL, PRIMARY KEY (key, layer)
) WITHOUT ROWID
"""


class LayerStore:
    """Caption rows by image, in a scratch database: tables in any order are joined without holding one in memory.

    Args:
        path: a file that does not exist yet, on a local disk.
        artifacts: the captions, all layers of each.
        names: the layers that are wanted, in order; None takes all, in the order in which they are met.

    Raises:
        ArtifactError: a table is missing or damaged.
        ConfigError: a layer is asked for that is not there, or one stands in two sources.
    """

    def __init__(self, path: Path, artifacts: Sequence[Artifact], names: Sequence[str] | None = None):
        self._database = sqlite3.connect(path)
        self._database.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {_TABLE}")
        origin: dict[str, Artifact] = {}
        numbers = {name: number for number, name in enumerate(names or ())}
        for artifact in artifacts:
            for batch in caption_batches(artifact):
                for layer in dict.fromkeys(batch["layer"]):
                    if origin.setdefault(layer, artifact) is not artifact:
                        raise ConfigError(
                            f"the layer {layer!r} stands in both {origin[layer].url} and {artifact.url}; "
                            "name only one of them as a source"
                        )
                    if names is None:
                        numbers.setdefault(layer, len(numbers))
                rows = zip(*(batch[name] for name in CAPTION_COLUMNS if name != "words"), strict=True)
                self._insert(artifact, ((key, numbers[layer], *rest) for key, layer, *rest in rows if layer in numbers))
        self._database.commit()
        # A stage may publish a layer that says nothing yet, such as a review before the first decision.
        published = {artifact.config.get("layer") or artifact.name for artifact in artifacts}
        missing = numbers.keys() - origin.keys() - published
        if missing:
            there = ", ".join(sorted(origin)) or "none"
            raise ConfigError(f"there is no caption layer {sorted(missing)[0]!r} among the sources (there is: {there})")
        self.layers = list(numbers)

    def rows(self, keys: Sequence[str]) -> dict[str, dict[str, CaptionRow]]:
        """By image, its caption rows by layer, in the order of the layers."""
        found: dict[str, dict[str, CaptionRow]] = {key: {} for key in keys}
        marks = ",".join("?" * len(keys))
        query = f"SELECT * FROM captions WHERE key IN ({marks}) ORDER BY layer"
        for key, number, text, status, detail, provenance in self._database.execute(query, list(keys)):
            layer = self.layers[number]
            found[key][layer] = CaptionRow(
                key=key, layer=layer, text=text, status=status, detail=detail, provenance=json.loads(provenance)
            )
        return found

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _insert(self, artifact: Artifact, rows: Iterable[tuple[Any, ...]]) -> None:
        try:
            self._database.executemany("INSERT INTO captions VALUES (?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError as error:
            raise ArtifactError(
                f"{artifact.url_of(CAPTIONS)} is damaged: an image has two rows in one layer"
            ) from error
