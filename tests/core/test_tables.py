"""Tables of artefacts are read a part at a time, in order, and damage is told in one line."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lens_core.errors import ArtifactError
from lens_core.storage.artifacts import Artifact
from lens_core.storage.tables import PART_ROWS, count_rows, read_parts

NUMBERS = pa.schema([("number", pa.int64())])


@pytest.fixture
def table(tmp_path):
    """An artefact with a table of 20,000 rows in three groups, with a column that nobody asks for."""
    numbers = list(range(20_000))
    content = pa.table({"unasked": list(map(str, numbers)), "number": pa.array(numbers, pa.int32())})
    pq.write_table(content, tmp_path / "t.parquet", row_group_size=9000, write_page_checksum=True)
    return Artifact(str(tmp_path), {"type": "captions"})


def test_parts_have_all_rows_in_order(table):
    parts = list(read_parts(table, "t.parquet", NUMBERS))
    assert all(part.schema == NUMBERS and len(part) <= PART_ROWS for part in parts)
    assert pa.concat_tables(parts)["number"].to_pylist() == list(range(20_000))
    assert count_rows(table, "t.parquet") == 20_000


@pytest.mark.parametrize("read", [count_rows, lambda *where: list(read_parts(*where, NUMBERS))])
def test_missing_and_damaged_tables(table, tmp_path, read):
    with pytest.raises(ArtifactError, match=r"none\.parquet: it does not exist$"):
        read(table, "none.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[:-10])
    with pytest.raises(ArtifactError, match=r"t\.parquet is damaged: [^\n]+$"):
        read(table, "t.parquet")


def test_a_column_that_is_not_there(table):
    with pytest.raises(ArtifactError, match=r"t\.parquet is damaged: .*other"):
        list(read_parts(table, "t.parquet", pa.schema([("other", pa.int64())])))
