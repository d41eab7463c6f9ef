"""Images in a column of Parquet files, in the order of files and rows; the image column is read late."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lens_core.contracts import ImageRecord
from lens_core.datasets import files
from lens_core.datasets.parquet.column import LateColumn
from lens_core.errors import ConfigError, StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lens_core.datasets.parquet.config import ParquetConfig

__all__ = ["Parquet"]

BUFFER = 1 << 20
"""Bytes that are read at a time; without it, Arrow reads a whole column of a row group at once."""


class Parquet:
    """One record per row."""

    def __init__(self, config: ParquetConfig, *, base: str = ".", seed: int = 0):
        self.config = config
        self.url = urls.resolve(config.url, base)

    def __len__(self) -> int:
        total = 0
        for url in self._files():
            with urls.open_read(url) as stream:
                total += _opened(stream, url).metadata.num_rows
        return total

    def __iter__(self) -> Iterator[ImageRecord]:
        for url in self._files():
            with urls.open_read(url) as stream:
                yield from self._records(url, _opened(stream, url))

    def fingerprint(self) -> str:
        """Hash of the files' paths, sizes and times."""
        return files.fingerprint(self._files())

    def _files(self) -> list[str]:
        return files.find(self.url, ".parquet")

    def _records(self, url: str, file: pq.ParquetFile) -> Iterator[ImageRecord]:
        config = self.config
        named = (config.name, config.licence_column, config.source_url_column)
        wanted = list(dict.fromkeys([*(name for name in named if name), *config.metadata]))
        known = file.schema_arrow.names
        for name in (config.image, *wanted):
            if name not in known:
                raise ConfigError(f"{url} has no column {name!r}; it has: {', '.join(known)}")
        address = files.as_text(url)
        shown = files.as_text(
            url.rsplit("/", 1)[-1] if url == self.url else url.removeprefix(self.url.rstrip("/") + "/")
        )
        images = LateColumn(file, url, config.image)
        number = 0
        for group in range(file.num_row_groups):
            rows = _rows(file, group, wanted, url)
            for row, facts in enumerate(rows):
                yield ImageRecord(
                    name=str(facts[config.name]) if config.name else f"{shown}/{number:08d}",
                    read=_reader(images, url, config.image, group, row),
                    licence=str(facts.get(config.licence_column or "") or config.licence),
                    source_url=str(facts.get(config.source_url_column or "") or f"{address}#{number}"),
                    metadata=files.plain({name: facts[name] for name in config.metadata}),
                )
                number += 1


def _reader(images: LateColumn, url: str, column: str, group: int, row: int) -> Callable[[], bytes]:
    """Reads from the open file while it is gone through, and opens it again afterwards."""
    folder = posixpath.dirname(url)

    def read() -> bytes:
        if not images.closed:
            return files.image_bytes(images.value(group, row), folder)
        with urls.open_read(url) as stream:
            again = LateColumn(_opened(stream, url), url, column)
            return files.image_bytes(again.value(group, row), folder)

    return read


def _opened(stream: BinaryIO, url: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream, buffer_size=BUFFER)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{url} is no Parquet file, or damaged: {' '.join(str(error).split())}") from error


def _rows(file: pq.ParquetFile, group: int, columns: list[str], url: str) -> list[dict[str, Any]]:
    if not columns:
        return [{} for _ in range(file.metadata.row_group(group).num_rows)]
    try:
        return file.read_row_group(group, columns=columns).to_pylist()  # type: ignore[no-any-return]
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{url} is damaged: {' '.join(str(error).split())}") from error
