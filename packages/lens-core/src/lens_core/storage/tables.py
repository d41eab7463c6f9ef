"""Parquet tables of artefacts, read a part at a time and checked on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from lens_core.errors import ArtifactError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_core.storage.artifacts import Artifact

__all__ = ["PART_ROWS", "count_rows", "read_parts"]

PART_ROWS = 8192


def read_parts(artifact: Artifact, path: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """A table's rows in their order, at most `PART_ROWS` at once, with the columns of `schema` and no others.

    Raises:
        ArtifactError: it is missing or damaged; the latter may show after the first parts only.
    """
    count = 0
    try:
        with artifact.open(path) as file, pq.ParquetFile(file, page_checksum_verification=True) as table:
            for batch in table.iter_batches(PART_ROWS, columns=schema.names):
                count += len(batch)
                yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
            if count != table.metadata.num_rows:
                raise ValueError(f"it has {count} rows, and says {table.metadata.num_rows}")
    except StorageError as error:
        raise ArtifactError(str(error)) from error
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise _damaged(artifact, path, error) from error


def count_rows(artifact: Artifact, path: str) -> int:
    """How many rows a table says it has.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    try:
        with artifact.open(path) as file, pq.ParquetFile(file) as table:
            return int(table.metadata.num_rows)
    except StorageError as error:
        raise ArtifactError(str(error)) from error
    except (pa.ArrowException, OSError) as error:
        raise _damaged(artifact, path, error) from error


def _damaged(artifact: Artifact, path: str, error: Exception) -> ArtifactError:
    return ArtifactError(f"{artifact.url_of(path)} is damaged: {' '.join(str(error).split())}")
