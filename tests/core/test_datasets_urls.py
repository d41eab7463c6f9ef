"""Tars, tables and saved datasets behind an fsspec URL give what they give on disk."""

from __future__ import annotations

import io
import tarfile
import uuid

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.test_datasets_huggingface import ROWS, save
from core.textures import encoded, texture
from lens_core.errors import StorageError

IMAGES = [encoded(texture(seed, 16)) for seed in range(7)]


def tars(folder):
    for part in range(2):
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for number, data in list(enumerate(IMAGES))[part::2]:
                info = tarfile.TarInfo(f"{number}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def tables(folder):
    pq.write_table(pa.table({"image": IMAGES}), folder / "t.parquet", row_group_size=3)


def saved(folder):
    save(folder, ROWS)


@pytest.mark.parametrize(("type_", "fill"), [("webdataset", tars), ("parquet", tables), ("huggingface", saved)])
def test_a_url_is_as_good_as_a_folder(lens_registry, tmp_path, type_, fill):
    fill(tmp_path)
    url = f"memory://{uuid.uuid4().hex}"
    memory = fsspec.filesystem("memory")
    for file in sorted(tmp_path.iterdir()):
        memory.pipe_file(f"{url.removeprefix('memory:/')}/{file.name}", file.read_bytes())

    def build(url):
        return lens_registry.build("datasets", lens_registry.parse("datasets", {"type": type_, "url": url}), base=".")

    here, there = build(str(tmp_path)), build(url)
    names = [record.name for record in here]
    assert names == [record.name for record in there]
    assert len(names) == 7
    assert [record.read() for record in here] == [record.read() for record in there]
    assert [record.read() for record in list(there)] == [record.read() for record in list(here)]
    assert there.fingerprint() == there.fingerprint()
    for size in (0, 9, len(IMAGES[0]), 10**6):
        for record in (*here, *list(there)):
            head, whole = record.head(size)
            assert record.read().startswith(head)
            assert len(head) == min(size, len(record.read())) or record.read_head is None
            assert not whole or head == record.read()


def test_the_beginning_of_a_file_in_a_folder(lens_registry, tmp_path):
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    config = lens_registry.parse("datasets", {"type": "image-folder", "url": str(tmp_path)})
    (record,) = lens_registry.build("datasets", config, base=".")
    assert record.head(10) == (IMAGES[0][:10], False)
    assert record.head(10**6) == (IMAGES[0], True)
    (tmp_path / "a.png").unlink()
    with pytest.raises(StorageError, match=r"a\.png"):
        record.head(10)
