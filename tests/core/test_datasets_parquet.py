"""Parquet files as a source: bytes, paths, pairs of both; read late and in little memory."""

from __future__ import annotations

import datetime
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.textures import encoded, texture
from lens_core.datasets import files
from lens_core.errors import ConfigError, StorageError

IMAGES = [encoded(texture(seed, 16)) for seed in range(7)]


@pytest.fixture
def source(lens_registry, tmp_path):
    def build(url="t.parquet", **options):
        config = lens_registry.parse("datasets", {"type": "parquet", "url": url} | options)
        return lens_registry.build("datasets", config, base=str(tmp_path), seed=0)

    return build


@pytest.fixture
def write(tmp_path):
    def run(columns, name="t.parquet", **options):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file, **options)
        return file

    return run


@pytest.mark.parametrize("group", [1, 3, 100])
def test_bytes_row_by_row(source, write, group):
    write({"image": IMAGES}, row_group_size=group)
    records = list(source())
    assert len(source()) == 7
    assert [record.name for record in records] == [f"t.parquet/{number:08d}" for number in range(7)]
    assert [record.read() for record in source()] == IMAGES
    assert [record.read() for record in records] == IMAGES
    assert [records[number].read() for number in (5, 2, 2, 6, 0)] == [IMAGES[number] for number in (5, 2, 2, 6, 0)]


def test_going_back_while_the_file_is_open(source, write):
    write({"image": IMAGES * 20})
    seen = []
    for record in source():
        seen.append(record)
        assert seen[len(seen) // 2].read() == IMAGES[len(seen) // 2 % 7]


def test_hugging_faces_pairs_and_paths(source, write, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(IMAGES[1])
    (tmp_path / "2.png").write_bytes(IMAGES[2])
    pairs = [
        {"bytes": IMAGES[0], "path": "x.png"},
        {"bytes": None, "path": "photos/1.png"},
        {"bytes": None, "path": str(tmp_path / "2.png")},
    ]
    write({"image": pairs, "file": ["photos/1.png", "2.png", "gone.png"]})
    assert [record.read() for record in source()] == IMAGES[:3]
    *found, gone = source(image="file")
    assert [record.read() for record in found] == IMAGES[1:3]
    with pytest.raises(StorageError, match=r"gone.png: it does not exist"):
        gone.read()


def test_columns_become_facts(source, write):
    write(
        {
            "img": IMAGES[:2],
            "id": [7, 8],
            "rights": ["CC-BY-4.0", None],
            "url": ["https://example.org/7", None],
            "when": [datetime.datetime(2026, 1, 2), None],
            "score": [0.5, float("nan")],
            "raw": [b"x", b"y"],
            "tags": [["a", "b"], []],
        }
    )
    options = {"image": "img", "name": "id", "licence_column": "rights", "source_url_column": "url", "licence": "mine"}
    first, second = source(**options, metadata=["when", "score", "raw", "tags"])
    assert (first.name, first.licence, first.source_url) == ("7", "CC-BY-4.0", "https://example.org/7")
    assert first.metadata == {"when": "2026-01-02 00:00:00", "score": 0.5, "tags": ["a", "b"]}
    assert (second.licence, second.metadata) == ("mine", {"when": None, "score": None, "tags": []})
    assert second.source_url.endswith("t.parquet#1")


def test_an_empty_cell_is_one_bad_image(source, write):
    write({"image": [IMAGES[0], None, IMAGES[2]]})
    first, second, third = source()
    assert (first.read(), third.read()) == (IMAGES[0], IMAGES[2])
    with pytest.raises(StorageError, match="the cell is empty"):
        second.read()


def test_folders_are_read_in_order(source, write):
    write({"image": IMAGES[2:3]}, "all/b/1.parquet")
    write({"image": IMAGES[:2]}, "all/a.parquet")
    write({"image": IMAGES[3:4]}, "all/.hidden/x.parquet")
    records = list(source("all"))
    assert [record.name for record in records] == ["a.parquet/00000000", "a.parquet/00000001", "b/1.parquet/00000000"]
    assert [record.read() for record in records] == IMAGES[:3]


def test_mistakes_are_one_line(source, write, tmp_path):
    file = write({"picture": IMAGES})
    with pytest.raises(ConfigError, match="has no column 'image'; it has: picture"):
        list(source())
    with pytest.raises(ConfigError, match="has no column 'title'"):
        list(source(image="picture", metadata=["title"]))
    file.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(StorageError, match="is no Parquet file, or damaged"):
        list(source(image="picture"))
    with pytest.raises(StorageError, match="does not exist"):
        list(source("gone.parquet"))


def test_damage_inside_is_told_by_image(source, write):
    file = write(
        {"image": [bytes([n]) * 3000 for n in range(7)]}, row_group_size=3, compression="zstd", use_dictionary=False
    )
    data = bytearray(file.read_bytes())
    data[20:60] = b"\xff" * 40
    file.write_bytes(data)
    first, *_ = records = list(source())
    with pytest.raises(StorageError, match=r"t\.parquet is damaged"):
        first.read()
    assert [len(record.read()) for record in records[3:]] == [3000] * 4


def test_the_fingerprint_changes_with_the_file(source, write):
    write({"image": IMAGES[:1]})
    before = source().fingerprint()
    assert source().fingerprint() == before
    write({"image": IMAGES})
    assert source().fingerprint() != before


def test_a_large_row_group_is_not_held_in_memory(source, write):
    # A writer looks at the size of a page only after so many rows.
    write({"image": [os.urandom(100_000) for _ in range(400)]}, use_dictionary=False, write_batch_size=8)
    before = peak = pa.total_allocated_bytes()
    for record in source():
        record.read()
        peak = max(peak, pa.total_allocated_bytes())
    assert peak - before < 20_000_000


OUTSIDE = [
    "/dev/zero",
    "../private.png",
    "photos/../../private.png",
    "{folder}/../private.png",
    "file://{folder}/../private.png",
    "~/private.png",
    "local://{folder}/../private.png",
    "simplecache::file://{folder}/../private.png",
    "s3://bucket::file://{folder}/../private.png",
]


@pytest.mark.parametrize(
    "cell", [*OUTSIDE, "a\0b", "~no-such-user/x.png", "photos", "pipe.png", "link.png", "http://[x/1.png"]
)
def test_a_cell_opens_no_file_elsewhere_and_no_device(source, write, tmp_path, monkeypatch, cell):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "private.png").write_bytes(IMAGES[0])
    folder = tmp_path / "table"
    (folder / "photos").mkdir(parents=True)
    (folder / "photos" / "1.png").write_bytes(IMAGES[1])
    (folder / "link.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    write({"image": [cell.format(folder=folder), "photos/1.png"]}, name="table/t.parquet")
    bad, good = source("table")
    with pytest.raises(StorageError) as caught:
        bad.read()
    assert len(str(caught.value).splitlines()) == 1
    assert ("lies outside of the table's folder" in str(caught.value)) == (cell in OUTSIDE)
    assert good.read() == IMAGES[1]


def test_a_cell_may_lead_to_a_web_server(source, write, tmp_path):
    (tmp_path / "1.png").write_bytes(IMAGES[1])
    serve = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = f"http://127.0.0.1:{server.server_port}"
        write({"image": [f"{web}/1.png", f"{web}/gone.png"]})
        found, gone = source()
        assert found.read() == IMAGES[1]
        with pytest.raises(StorageError, match=r"gone\.png"):
            gone.read()
        server.shutdown()


def test_a_file_of_another_size_than_images_have_is_not_read(source, write, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", len(IMAGES[1]) - 1)
    (tmp_path / "1.png").write_bytes(IMAGES[1])
    write({"image": ["1.png"]})
    (record,) = source()
    with pytest.raises(StorageError, match=r"1\.png has more than [0-9,]+ bytes"):
        record.read()


def test_a_table_whose_name_is_in_another_encoding(source, write):
    file = write({"image": IMAGES})
    file.rename(file.with_name(os.fsdecode(b"caf\xe9.parquet")))
    record = next(iter(source(".")))
    assert record.name == "caf\\xe9.parquet/00000000"
    assert record.source_url.endswith("/caf\\xe9.parquet#0")
    assert len(source(".").fingerprint()) == 64
