"""Caption layers: a Parquet table beside the pixels, keyed by image and layer. Nothing ever rewrites a shard.

An image may have several layers (a brief one, a dense one); a trainer names those it wants. Failed images are rows
too, with a status and no text, so that what is missing can be asked for.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lens_core.errors import ArtifactError
from lens_core.storage.tables import PART_ROWS, read_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from lens_core.storage.artifacts import Artifact, OutputFolder

__all__ = ["CAPTIONS", "CaptionRow", "read_captions", "read_texts", "write_captions"]

CAPTIONS = "captions.parquet"

_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("layer", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("words", pa.int32(), nullable=False),
        pa.field("provenance", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """What one layer says of one image; `text` is empty unless `status` is "ok"."""

    key: str
    layer: str
    text: str
    status: str = "ok"
    detail: str = ""
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)


def write_captions(output: OutputFolder, rows: Iterable[CaptionRow]) -> None:
    """Write a caption table, a row group at a time: the rows are never in memory together.

    Raises:
        ValueError: an image has two rows in one layer.
    """
    file = output.local_dir("captions") / CAPTIONS
    digests = array("Q")
    left = iter(rows)
    with pq.ParquetWriter(file, _SCHEMA, write_page_checksum=True) as table:
        while group := list(islice(left, PART_ROWS)):
            digests.extend(_digest(row.key, row.layer) for row in group)
            table.write_table(_table(group))
    _refuse_repeats(file, digests)
    output.add_file(CAPTIONS, file)


def read_captions(artifact: Artifact, *, layers: Iterable[str] | None = None) -> list[CaptionRow]:
    """The rows of an artefact of type "captions", in the order written.

    Args:
        artifact: the captions.
        layers: only these; None means all.

    Raises:
        ArtifactError: the table is missing or damaged, or has no such layer.
    """
    columns = ("key", "layer", "text", "status", "detail", "provenance")
    return [
        CaptionRow(key=key, layer=layer, text=text, status=status, detail=detail, provenance=json.loads(provenance))
        for key, layer, text, status, detail, provenance in _rows(artifact, columns, layers)
    ]


def read_texts(artifact: Artifact, *, layers: Iterable[str] | None = None) -> Iterator[tuple[str, str]]:
    """The image key and the text of every caption, in the order written: of a large table no more than a part at once.

    Args:
        artifact: the captions.
        layers: only these; None means all.

    Raises:
        ArtifactError: the table is missing or damaged, or has no such layer; the latter is known at the end.
    """
    for key, _, text, status in _rows(artifact, ("key", "layer", "text", "status"), layers):
        if status == "ok":
            yield key, text


def _rows(artifact: Artifact, columns: Sequence[str], layers: Iterable[str] | None) -> Iterator[tuple[Any, ...]]:
    """Some columns of the rows of some layers; the second column is the layer."""
    wanted = None if layers is None else set(layers)
    there: set[str] = set()
    for part in read_parts(artifact, CAPTIONS, pa.schema([_SCHEMA.field(name) for name in columns])):
        values = part.to_pydict()
        there.update(values["layer"])
        yield from (row for row in zip(*values.values(), strict=True) if wanted is None or row[1] in wanted)
    if missing := sorted((wanted or set()) - there):
        raise ArtifactError(
            f"{artifact.url} has no caption layer {missing[0]!r} (it has: {', '.join(sorted(there)) or 'none'})"
        )


def _table(rows: list[CaptionRow]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    for row in rows:
        provenance = json.dumps(dict(row.provenance), sort_keys=True, ensure_ascii=False)
        values = (row.key, row.layer, row.text, row.status, row.detail, len(row.text.split()), provenance)
        for name, value in zip(_SCHEMA.names, values, strict=True):
            columns[name].append(value)
    return pa.table(columns, schema=_SCHEMA)


def _refuse_repeats(file: Path, digests: array[int]) -> None:
    """Eight bytes of each row tell whether any may be there twice; only then are the rows themselves compared."""
    values_N = np.sort(np.frombuffer(digests, np.uint64))
    suspects = set(values_N[1:][values_N[1:] == values_N[:-1]].tolist())
    seen: set[tuple[str, str]] = set()
    for batch in pq.ParquetFile(file).iter_batches(columns=["key", "layer"]) if suspects else ():
        for row in zip(*batch.to_pydict().values(), strict=True):
            if _digest(*row) in suspects:
                if row in seen:
                    raise ValueError(f"image {row[0]} has two captions in the layer {row[1]!r}")
                seen.add(row)


def _digest(key: str, layer: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{layer}\0{key}".encode(), digest_size=8).digest())
