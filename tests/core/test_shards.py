"""Shards: the bytes come back unchanged, by our reader, by Python's tarfile, and by offset alone."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_core.errors import ArtifactError
from lens_core.storage.artifacts import Artifact, OutputFolder
from lens_core.storage.shards import INDEX, ImageRow, ShardReader, ShardWriter, image_key

OPEN_FILES = Path("/proc/self/fd")


def row(data, **options):
    known = {"name": "x", "width": 3, "height": 2, "format": "png"}
    return ImageRow(key=image_key(data), data=data, **known | options)


def store(folder, rows, **options):
    """Write rows into an artefact below `folder`."""
    output = OutputFolder(str(folder / "images"), folder / "scratch")
    writer = ShardWriter(output, **options)
    for item in rows:
        writer.add(item)
    assert writer.close() == len(rows)
    return Artifact(output.url, {"type": "images", "files": [vars(entry) for entry in output.files.values()]})


def shards(artifact):
    return sorted(Path(artifact.url).glob("*.tar"))


@pytest.fixture
def three(tmp_path):
    """Three images, and what was written of them."""
    rows = [row(bytes([number]) * 700, name=f"{number}.png") for number in range(3)]
    return store(tmp_path, rows), rows


def test_rows_come_back_as_they_were(tmp_path):
    rows = [
        row(b"\x00\xff" * 300, name="folder/ü 你.png", licence="CC0", source_url="https://example.org/1"),
        row(b"x", format="jpeg", width=640, height=480, metadata={"title": 'Straße\n"', "n": [1, {"a": None}]}),
        row(b"y" * 512, format="webp"),
    ]
    reader = ShardReader(store(tmp_path, rows))
    assert list(reader) == rows
    assert len(reader) == 3
    assert reader[-1] == rows[2]
    assert reader.columns["size"] == [600, 1, 512]


def test_rows_are_found_by_key(three):
    artifact, rows = three
    reader = ShardReader(artifact)
    for item in reversed(rows):
        assert reader.by_key(item.key) == item
        assert reader.has(item.key)
    assert not reader.has("0" * 64)
    with pytest.raises(KeyError):
        reader.by_key("0" * 64)
    with pytest.raises(IndexError):
        reader[3]


def test_a_closed_reader_opens_again(three):
    artifact, rows = three
    reader = ShardReader(artifact)
    assert reader[1] == rows[1]
    reader.close()
    reader.close()
    assert reader[1] == rows[1]
    reader.close()


# Sizes around the block of 512 bytes, where padding and offsets go wrong.
sizes = st.lists(st.integers(0, 1600) | st.sampled_from([511, 512, 513, 1024, 10_240]), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([1, 2048, 5000, 256 << 20]), st.randoms(use_true_random=False))
def test_any_sizes_lie_where_the_index_says(lengths, max_bytes, rng):
    rows = [row(rng.randbytes(length), name=str(number)) for number, length in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as folder:
        artifact = store(Path(folder), rows, max_bytes=max_bytes)
        reader = ShardReader(artifact)
        assert list(reader) == rows
        reader.close()
        for number, item in enumerate(rows):
            tar = (Path(artifact.url) / reader.columns["shard"][number]).read_bytes()
            offset = reader.columns["offset"][number]
            assert tar[offset : offset + len(item.data)] == item.data
        found = []
        for shard in shards(artifact):
            with tarfile.open(shard) as tar:
                found += [(entry.name, tar.extractfile(entry).read()) for entry in tar]
        assert found[::2] == [(f"{item.key}.png", item.data) for item in rows]
        assert found[1::2] == [(f"{item.key}.json", b"{}") for item in rows]


@pytest.mark.parametrize(
    ("max_bytes", "numbers"), [(5120, [0, 0, 1, 1, 2]), (5121, [0, 0, 0, 1, 1]), (1, [0, 1, 2, 3, 4])]
)
def test_a_new_shard_begins_when_one_is_full(tmp_path, max_bytes, numbers):
    # An image takes 512 + 1024 bytes, and its metadata 512 + 512: 5120 for two.
    rows = [row(bytes([number]) * 1000) for number in range(5)]
    artifact = store(tmp_path, rows, max_bytes=max_bytes)
    reader = ShardReader(artifact)
    assert reader.columns["shard"] == [f"shard-{number:05d}.tar" for number in numbers]
    assert [path.name for path in shards(artifact)] == sorted(set(reader.columns["shard"]))
    assert {entry.path for entry in artifact.files} == {INDEX, *reader.columns["shard"]}
    assert list(reader) == rows
    reader.close()


def test_one_shard_is_usual(three):
    assert len(shards(three[0])) == 1


def test_no_images_make_no_shard(tmp_path):
    artifact = store(tmp_path, [])
    assert shards(artifact) == []
    assert list(ShardReader(artifact)) == []


def test_the_same_images_give_the_same_bytes(tmp_path):
    rows = [row(bytes([number]) * 900, metadata={"b": 1, "a": "ü"}) for number in range(4)]
    again = [row(bytes([number]) * 900, metadata={"a": "ü", "b": 1}) for number in range(4)]
    first = store(tmp_path / "1", rows, max_bytes=4000)
    second = store(tmp_path / "2", again, max_bytes=4000)
    assert first.files == second.files
    with tarfile.open(shards(first)[0]) as tar:
        for entry in tar:
            assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, 0, "", "")


def test_a_shard_never_changes_unseen(tmp_path):
    # Pinned: another version of Python, or a change of ours, must not give old images new shards.
    (shard,) = shards(store(tmp_path, [row(b"pixels" * 200, metadata={"title": "ü"})]))
    assert (
        hashlib.sha256(shard.read_bytes()).hexdigest()
        == "cae306551e442e9fcfb236c02ef28db43b079f8b005c10e9777626f9b27f8a49"
    )


def test_webdataset_finds_pairs(tmp_path):
    formats = ["jpeg", "png", "mpo", "tiff", "webp"]
    rows = [row(name.encode(), format=name, metadata={"n": name}) for name in formats]
    with tarfile.open(shards(store(tmp_path, rows))[0]) as tar:
        entries = [(entry.name, tar.extractfile(entry).read()) for entry in tar]
        assert all(entry.isreg() for entry in tar.getmembers())
    # WebDataset groups neighbours by what stands before the first dot.
    keys = [name.split(".", 1)[0] for name, _ in entries]
    assert keys == [key for item in rows for key in (item.key, item.key)]
    assert [name.split(".", 1)[1] for name, _ in entries[::2]] == ["jpg", "png", "jpg", "tif", "webp"]
    assert {name.split(".", 1)[1] for name, _ in entries[1::2]} == {"json"}
    assert [json.loads(text) for _, text in entries[1::2]] == [{"n": name} for name in formats]


def test_shards_are_plain_ustar(three):
    data = shards(three[0])[0].read_bytes()
    assert data[257:265] == b"ustar\x0000"
    assert len(data) % 512 == 0
    assert data.endswith(bytes(1024))


def test_an_error_while_writing_closes_the_shard_and_writes_no_index(tmp_path):
    output = OutputFolder(str(tmp_path / "images"), tmp_path / "scratch")

    def write(*rows):
        with ShardWriter(output) as writer:
            for item in rows:
                writer.add(item)

    with pytest.raises(AttributeError):
        write(row(b"x"), "no row")
    assert output.files == {}
    write(row(b"x"))
    assert set(output.files) == {INDEX, "shard-00000.tar"}


def test_a_truncated_shard_is_named_with_its_image(three):
    artifact, rows = three
    (shard,) = shards(artifact)
    offset = ShardReader(artifact).columns["offset"][1]
    shard.write_bytes(shard.read_bytes()[: offset + 10])
    reader = ShardReader(artifact)
    assert reader[0] == rows[0]
    for number in (1, 2):
        with pytest.raises(ArtifactError, match=rf"shard-00000.tar is truncated: image '{number}.png'"):
            reader[number]
    reader.close()


def test_a_missing_shard_is_named(three):
    artifact, _ = three
    shards(artifact)[0].unlink()
    with pytest.raises(ArtifactError, match=r"shard-00000.tar: it does not exist"):
        ShardReader(artifact)[0]


def test_a_missing_index_is_named(three):
    artifact, _ = three
    (Path(artifact.url) / INDEX).unlink()
    with pytest.raises(ArtifactError, match=r"index.parquet: it does not exist"):
        ShardReader(artifact)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"junk" * 99, lambda data: data[:-9]])
def test_a_damaged_index_is_named(three, damage):
    artifact, _ = three
    index = Path(artifact.url) / INDEX
    index.write_bytes(damage(index.read_bytes()))
    with pytest.raises(ArtifactError, match=r"index.parquet is damaged") as caught:
        ShardReader(artifact)
    assert str(caught.value).splitlines() == [str(caught.value)]


def test_no_wrong_byte_in_the_index_goes_unseen(three):
    artifact, rows = three
    index = Path(artifact.url) / INDEX
    whole = index.read_bytes()
    rng = random.Random(1)
    seen = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        index.write_bytes(damaged)
        try:
            reader = ShardReader(artifact)
        except ArtifactError:
            seen += 1
        else:
            assert list(reader) == rows  # it hit what nobody reads, such as the name of the library
            reader.close()
    assert seen > 150


def test_a_column_less_is_an_error_and_one_more_is_not(three):
    artifact, rows = three
    index = Path(artifact.url) / INDEX
    table = pq.read_table(io.BytesIO(index.read_bytes()))
    pq.write_table(table.append_column("new", pa.array(range(3))), index)
    reader = ShardReader(artifact)
    assert list(reader) == rows
    reader.close()
    pq.write_table(table.drop_columns(["offset"]), index)
    with pytest.raises(ArtifactError, match=r"index.parquet is damaged: .*offset"):
        ShardReader(artifact)


def test_of_many_shards_few_are_open(tmp_path):
    rows = [row(bytes([number]) * 100) for number in range(60)]
    reader = ShardReader(store(tmp_path, rows, max_bytes=1))
    before = len(list(OPEN_FILES.iterdir()))
    for _ in range(2):
        assert [found.data for found in reader] == [made.data for made in rows]
    assert len(set(reader.columns["shard"])) == 60
    assert len(list(OPEN_FILES.iterdir())) - before <= 16
    reader.close()


def test_a_shard_that_cannot_be_read_is_named(three):
    reader = ShardReader(three[0])
    reader.columns["offset"][0] = -1  # such a seek fails as on a disk that is broken
    with pytest.raises(ArtifactError, match=r"cannot read .*shard-00000\.tar: invalid argument"):
        reader[0]
    reader.close()
