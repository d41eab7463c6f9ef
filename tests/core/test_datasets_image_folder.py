"""What lies beside images in a folder: texts of their names, and Hugging Face's tables."""

from __future__ import annotations

import json
import os
import uuid

import fsspec
import pytest

from core.textures import encoded, texture
from lens_core.errors import StorageError

IMAGE = encoded(texture(0, 16))


@pytest.fixture
def source(lens_registry, tmp_path):
    def build(url=str(tmp_path)):
        config = lens_registry.parse("datasets", {"type": "image-folder", "url": url})
        return lens_registry.build("datasets", config, base=".", seed=0)

    return build


@pytest.fixture
def fill(tmp_path):
    """Write files; images need no content of their own."""

    def run(files):
        for name, data in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(IMAGE if data is None else data)

    return run


def lines(*rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


FOLDER = {
    "a.jpg": None,
    "a.txt": "a fox, ü\n".encode(),
    "a.2.png": None,
    "notes.txt": b"of no image",
    "b/c.JPG": None,
    "b/c.png": None,
    "b/c.TXT": b"\xef\xbb\xbfa mark before it",
    "b/metadata.jsonl": lines({"file_name": "d.png", "text": "in b"}),
    "b/d.png": None,
    ".old/metadata.jsonl": b"{broken",
    "metadata.jsonl": lines(
        {"file_name": "b/c.JPG", "text": "a cat", "n": float("nan"), "tags": {"of": ["x", 2]}},
        {"file_name": "./a.2.png", "text": "a dog", "half": "\ud83d"},
        {"file_name": "deleted.png", "text": "nobody"},
    )
    + b"\n",
}
SAID = {
    "a.2.png": {"text": "a dog", "half": "\\ud83d"},
    "a.jpg": {"txt": "a fox, ü\n"},
    "b/c.JPG": {"text": "a cat", "n": None, "tags": {"of": ["x", 2]}, "txt": "a mark before it"},
    "b/c.png": {"txt": "a mark before it"},
    "b/d.png": {"text": "in b"},
}


def test_texts_and_tables_go_with_their_images(source, fill):
    fill(FOLDER)
    records = list(source())
    assert {record.name: record.metadata for record in records} == SAID
    assert {record.read() for record in records} == {IMAGE}


def test_a_url_is_as_good_as_a_folder(source):
    url = f"memory://{uuid.uuid4().hex}"
    for name, data in FOLDER.items():
        fsspec.filesystem("memory").pipe_file(f"{url.removeprefix('memory:/')}/{name}", data or IMAGE)
    assert {record.name: record.metadata for record in source(url)} == SAID


def test_texts_are_read_late(source, fill):
    fill({"a.png": None, "b.png": None, "a.txt": b"one", "b.txt": b"two"})
    records = iter(source())
    assert next(records).metadata == {"txt": "one"}
    fill({"b.txt": b"three"})
    assert next(records).metadata == {"txt": "three"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{broken", "not valid JSON"),
        (b'{"file_name": "b.png", "text": "caf\xe9"}', "not valid JSON"),
        (b'{"file_name": "b.png", "deep": ' + b"[" * 100_000, "not valid JSON"),
        (b'["b.png"]', "'file_name'"),
        (b'{"text": "a fox"}', "'file_name'"),
        (b'{"file_name": 7}', "'file_name'"),
        (b'{"file_name": "./a.png", "text": "again"}', "is the second line about './a.png'"),
    ],
)
def test_a_bad_line_of_a_table_is_one_error_that_says_where(source, fill, tmp_path, line, words):
    first = lines({"file_name": "a.png", "text": "good"})
    fill({"a.png": None, "b.png": None, "metadata.jsonl": first + b"\n" + line + b"\n"})
    with pytest.raises(StorageError) as caught:
        list(source())
    (message,) = str(caught.value).splitlines()
    assert message.startswith(f"{tmp_path}/metadata.jsonl:3 ")
    assert words in message


def test_a_bad_text_costs_its_image_and_nothing_else(source, fill, tmp_path):
    fill({f"{number}.png": None for number in range(5)})
    fill({"0.txt": "café".encode("latin-1"), "1.txt": b"x" * 65537, "2.txt": b"x" * 65536, "4.txt": b""})
    (tmp_path / "3.txt").symlink_to("gone.txt")
    records = list(source())
    assert [record.name for record in records] == [f"{number}.png" for number in range(5)]
    for number, words in [(0, "is not UTF-8 text"), (1, "has more than 65,536 bytes"), (3, "does not exist")]:
        with pytest.raises(StorageError, match=words) as caught:
            records[number].head(10)
        assert f"{tmp_path}/{number}.txt" in str(caught.value)
    for number, text in [(2, "x" * 65536), (4, "")]:
        assert (records[number].read(), records[number].metadata) == (IMAGE, {"txt": text})


def test_the_fingerprint_changes_with_what_lies_beside_the_images(source, fill, tmp_path):
    table = lines({"file_name": "a.png", "text": "one"})
    fill({"a.png": None, "a.txt": b"one", "metadata.jsonl": table})
    seen = [source().fingerprint()]
    fill({"notes.txt": b"of no image"})
    assert source().fingerprint() == seen[0]
    for change in ({"a.txt": b"other"}, {"metadata.jsonl": table * 2}, {"b/metadata.jsonl": table}):
        fill(change)
        seen.append(source().fingerprint())
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    seen.append(source().fingerprint())
    (tmp_path / "a.txt").unlink()
    seen.append(source().fingerprint())
    assert len(set(seen)) == len(seen) == 6
