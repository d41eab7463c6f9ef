"""Tars as a source: those of others, and Lens's own shards."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile

import pytest

from core.textures import encoded, texture
from lens_core.datasets.webdataset.dataset import MAX_METADATA
from lens_core.errors import StorageError

PIXELS = [texture(seed, 16) for seed in range(6)]


@pytest.fixture
def source(lens_registry, tmp_path):
    def build(url="shards", **options):
        config = lens_registry.parse("datasets", {"type": "webdataset", "url": url} | options)
        return lens_registry.build("datasets", config, base=str(tmp_path), seed=0)

    return build


def write(file, members, *, format_=tarfile.USTAR_FORMAT):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=format_) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_samples_are_neighbours_of_one_name(source, tmp_path):
    write(
        tmp_path / "shards" / "a.tar",
        [
            ("000.jpg", encoded(PIXELS[0], "JPEG")),
            ("000.json", json.dumps({"title": "first", "n": 3, "nan": float("nan")}).encode()),
            ("000.txt", "a caption, ü".encode()),
            ("__README", b"no ending"),
            ("deep/001.seg.png", b"not the image"),
            ("deep/001.PNG", encoded(PIXELS[1])),
            ("deep/001.cls", b"7"),
            ("002.txt", b"no image here"),
        ],
    )
    write(tmp_path / "shards" / "more" / "b.tar", [("000.webp", encoded(PIXELS[2], "WEBP"))])
    first, second, third = list(source(licence="CC0-1.0"))
    assert [first.name, second.name, third.name] == ["a.tar/000.jpg", "a.tar/deep/001.png", "more/b.tar/000.webp"]
    assert first.metadata == {"title": "first", "n": 3, "nan": None, "txt": "a caption, ü"}
    assert second.metadata == {}
    assert first.licence == "CC0-1.0"
    assert first.source_url == f"{tmp_path}/shards/a.tar#000.jpg"
    # All tars are closed by now.
    assert first.read() == encoded(PIXELS[0], "JPEG")
    assert second.read() == encoded(PIXELS[1])


def test_reading_on_the_way_and_afterwards_is_the_same(source, tmp_path):
    write(tmp_path / "x.tar", [(f"{n}.png", encoded(pixels)) for n, pixels in enumerate(PIXELS)])
    records = source("x.tar")
    assert [record.read() for record in records] == [record.read() for record in list(records)]
    assert [record.name for record in records] == [f"x.tar/{n}.png" for n in range(6)]


def test_of_several_images_in_a_sample_the_first_ending_is_taken(source, tmp_path):
    members = [("s.png", encoded(PIXELS[0])), ("s.condition.png", encoded(PIXELS[1])), ("s.jpg", b"jpeg")]
    write(tmp_path / "x.tar", members)
    assert [record.name for record in source("x.tar")] == ["x.tar/s.jpg"]
    assert [record.name for record in source("x.tar", images=["condition.png"])] == ["x.tar/s.condition.png"]
    (record,) = source("x.tar", images=["png", "jpg"], metadata=["jpg"])
    assert (record.read(), record.metadata) == (encoded(PIXELS[0]), {"jpg": "jpeg"})


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_dialect(source, tmp_path, format_):
    name = "/".join(["folder" * 3] * 4) + "/" + "n" * 90 + ".png"
    write(tmp_path / "x.tar", [(name, encoded(PIXELS[0]))], format_=format_)
    (record,) = source("x.tar")
    assert record.name == f"x.tar/{name}"
    assert record.read() == encoded(PIXELS[0])


def test_a_broken_json_is_kept_as_text_and_a_list_under_its_ending(source, tmp_path):
    image = encoded(PIXELS[0])
    write(tmp_path / "x.tar", [("a.png", image), ("a.json", b"{broken"), ("b.png", image), ("b.json", b"[1, 2]")])
    assert [record.metadata for record in source("x.tar")] == [{"json": "{broken"}, {"json": [1, 2]}]


@pytest.mark.parametrize("limits", [0.6, 2])  # more than we go through, more than the parser does
def test_json_that_is_nested_too_deeply_is_kept_as_text(source, tmp_path, limits):
    levels = int(limits * sys.getrecursionlimit())
    deep = b"[" * levels + b"]" * levels
    write(tmp_path / "x.tar", [("a.png", encoded(PIXELS[0])), ("a.json", deep)])
    (record,) = source("x.tar")
    assert record.metadata == {"json": deep.decode()}


def test_a_text_that_is_too_large_costs_its_image_and_no_other(source, tmp_path):
    image, most = encoded(PIXELS[0]), "a" * MAX_METADATA
    members = [("a.png", image), ("a.txt", b"a" + most.encode()), ("b.png", image), ("b.txt", most.encode())]
    write(tmp_path / "x.tar", members)
    large, fitting = source("x.tar")
    with pytest.raises(
        StorageError, match=r"x\.tar#a\.txt has more than 1,048,576 bytes; leave 'txt' out of `metadata`$"
    ):
        large.read()
    assert large.name == "x.tar/a.png"
    assert (fitting.read(), fitting.metadata) == (image, {"txt": most})


def test_a_damaged_tar_costs_its_rest_and_nothing_else(source, tmp_path):
    members = [(f"{n}.png", encoded(pixels)) for n, pixels in enumerate(PIXELS)]
    write(tmp_path / "shards" / "a.tar", members)
    write(tmp_path / "shards" / "b.tar", members)
    file = tmp_path / "shards" / "a.tar"
    whole = file.read_bytes()
    outcomes = set()
    for length in range(0, 8000, 700):
        file.write_bytes(whole[:length])
        read, failures = [], []
        for record in source():
            try:
                read.append(record.read())
            except StorageError as error:
                failures.append(str(error))
        assert all("a.tar" in text and len(text.splitlines()) == 1 for text in failures)
        assert read[-6:] == [data for _, data in members]
        outcomes.add(len(read) - 6)
    assert len(outcomes) > 2
    file.write_bytes(b"\xff" * 5000)
    assert next(record.name for record in source()) == "a.tar (what is left of it)"


def test_nothing_there_is_one_line(source, tmp_path):
    (tmp_path / "shards").mkdir()
    for url, words in [
        ("shards", "holds no file that ends in .tar"),
        ("gone.tar", "does not exist"),
        ("x", "not exist"),
    ]:
        with pytest.raises(StorageError, match=words):
            list(source(url))


def test_the_fingerprint_changes_with_the_files(source, tmp_path):
    write(tmp_path / "shards" / "a.tar", [("a.png", b"1")])
    before = source().fingerprint()
    assert source().fingerprint() == before
    write(tmp_path / "shards" / "b.tar", [("a.png", b"1")])
    assert source().fingerprint() != before


def test_lens_shards_are_a_source(source, lens_registry, tmp_path):
    import yaml

    from lens_core.config.pipeline import load_pipeline
    from lens_core.pipeline.progress import Progress
    from lens_core.pipeline.runner import run_pipeline
    from lens_core.storage.shards import ShardReader

    def ingest(run, source_):
        file = tmp_path / "p.yaml"
        stage = {"name": "images", "type": "ingest", "source": source_}
        file.write_text(yaml.safe_dump({"run": str(tmp_path / run), "stages": [stage]}))
        loaded = load_pipeline(str(file), lens_registry)
        artifact = run_pipeline(loaded, lens_registry, progress=Progress(stream=io.StringIO()))["images"]
        return list(ShardReader(artifact))

    first = ingest("one", {"type": "scenes", "count": 9})
    second = ingest("two", {"type": "webdataset", "url": "one/images"})
    assert [(row.key, row.data, row.metadata) for row in first] == [(row.key, row.data, row.metadata) for row in second]


def test_memory_does_not_grow_with_the_tar(source, tmp_path):
    import tracemalloc

    write(tmp_path / "x.tar", [(f"{n:06d}.png", b"x" * 100) for n in range(6000)])
    tracemalloc.start()
    count = sum(1 for _ in source("x.tar"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6000
    assert peak < 4_000_000


def test_names_and_texts_that_utf8_cannot_hold_are_shown_escaped(source, tmp_path):
    image = encoded(PIXELS[0])
    file = tmp_path / "shards" / os.fsdecode(b"t\xe9.tar")
    facts = b'{"half \\ud83d": ["a \\ud83d", {"b": "\\ude00 c"}], "whole": "\\ud83d\\ude00"}'
    write(file, [(os.fsdecode(b"caf\xe9.png"), image), (os.fsdecode(b"caf\xe9.json"), facts)])
    (record,) = source()
    assert record.name == "t\\xe9.tar/caf\\xe9.png"
    assert record.source_url == f"{tmp_path}/shards/t\\xe9.tar#caf\\xe9.png"
    assert record.metadata == {"half \\ud83d": ["a \\ud83d", {"b": "\\ude00 c"}], "whole": "😀"}
    assert record.read() == image
    file.write_bytes(b"\xff" * 5000)
    (rest,) = source()
    with pytest.raises(StorageError) as caught:
        rest.read()
    assert "t\\xe9.tar" in str(caught.value)


@pytest.mark.parametrize("size", [2**50, 2**70])
def test_a_size_that_no_file_has_costs_the_rest_of_the_tar(source, tmp_path, size):
    image = encoded(PIXELS[0])
    write(tmp_path / "x.tar", [("a.png", image), ("b.png", image)], format_=tarfile.GNU_FORMAT)
    info = tarfile.TarInfo("b.png")
    info.size = size
    data = bytearray((tmp_path / "x.tar").read_bytes())
    place = data.rindex(b"b.png")
    data[place : place + 512] = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "x.tar").write_bytes(data)
    first, *others = source("x.tar")
    assert first.read() == image
    assert others[-1].name == "x.tar (what is left of it)"
    for other in others:
        with pytest.raises(StorageError, match=r"x\.tar"):
            other.read()
