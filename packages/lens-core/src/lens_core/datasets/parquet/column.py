"""One column of a Parquet file, value by value, without holding a row group in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lens_core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LateColumn"]

BATCH = 32


class LateColumn:
    """Values in ascending order of their rows stream through; going back starts the row group again."""

    def __init__(self, file: pq.ParquetFile, url: str, column: str):
        self._file = file
        self._url = url
        self._column = column
        self._group = -1
        self._batches: Iterator[Any] = iter(())
        self._start = 0
        self._batch: Any = None

    @property
    def closed(self) -> bool:
        """Whether the file behind it has been closed."""
        return bool(self._file.closed)

    def value(self, group: int, row: int) -> Any:
        """The value in a row of a row group.

        Raises:
            StorageError: the file is damaged there.
        """
        try:
            if group != self._group or row < self._start:
                self._begin(group)
            while row >= self._start + len(self._batch):
                self._start += len(self._batch)
                self._batch = next(self._batches).column(0)
            return self._batch[row - self._start].as_py()
        except (pa.ArrowException, OSError, StopIteration, ValueError) as error:
            self._group = -1
            raise StorageError(f"{self._url} is damaged: {' '.join(str(error).split())}") from error

    def _begin(self, group: int) -> None:
        self._group = -1
        self._batches = self._file.iter_batches(batch_size=BATCH, row_groups=[group], columns=[self._column])
        self._start = 0
        self._batch = next(self._batches).column(0)
        self._group = group
