"""URLs, atomic writes and artefacts: on a file system, and on a real S3 server of our own (moto)."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from lens_core.errors import ArtifactError, MissingExtraError, StorageError
from lens_core.storage import urls
from lens_core.storage.artifacts import OutputFolder, load_artifact


def test_write_read_list_remove(root):
    urls.write_bytes(urls.join(root, "a", "b.txt"), b"one")
    urls.write_bytes(urls.join(root, "a", "b.txt"), b"two")
    urls.write_bytes(urls.join(root, "c.txt"), "drei ü".encode())
    assert urls.read_bytes(urls.join(root, "a/b.txt")) == b"two"
    assert urls.read_text(urls.join(root, "c.txt")) == "drei ü"
    assert urls.ls(root) == ["a", "c.txt"]
    assert list(urls.walk(root)) == ["a/b.txt", "c.txt"]
    assert urls.exists(urls.join(root, "c.txt"))
    with urls.open_read(urls.join(root, "a/b.txt")) as stream:
        stream.seek(1)
        assert stream.read() == b"wo"
    urls.remove(urls.join(root, "c.txt"))
    urls.remove(urls.join(root, "c.txt"))
    assert not urls.exists(urls.join(root, "c.txt"))
    urls.remove(root, recursive=True)
    assert urls.ls(root) == []


def test_parts_of_files_are_read_together(root):
    one, other = urls.join(root, "one"), urls.join(root, "other")
    urls.write_bytes(one, bytes(range(100)))
    urls.write_bytes(other, b"0123456789")
    absent = urls.join(root, "absent")
    parts = urls.read_ranges([(one, 10, 3), (other, 0, 4), (absent, 5, 1), (one, 98, 10), (one, 10, 3), (absent, 0, 1)])
    assert [parts[number] for number in (0, 1, 3, 4)] == [b"\n\x0b\x0c", b"0123", b"bc", b"\n\x0b\x0c"]
    for number in (2, 5):
        assert isinstance(parts[number], StorageError)
        assert "absent: it does not exist" in str(parts[number])
    assert urls.read_ranges([]) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second file system")
def test_a_file_moves_to_another_file_system(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if Path(other).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("it is the same file system")
        source = Path(other) / "source"
        source.write_bytes(b"data")
        urls.put_file(str(tmp_path / "folder" / "target"), source)
        assert not source.exists()
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["target"]
    assert (tmp_path / "folder" / "target").read_bytes() == b"data"


def test_the_home_folder_is_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    urls.write_bytes("~/runs/file", b"data")
    assert (tmp_path / "runs" / "file").read_bytes() == urls.read_bytes("~/runs/file") == b"data"
    assert urls.ls("~/runs") == list(urls.walk("~/runs")) == ["file"]
    assert urls.read_ranges([("~/runs/file", 1, 2)]) == [b"at"]
    assert urls.resolve("~/photos", "/somewhere") == "~/photos"
    assert urls.resolve("~no-such-user/photos", "/somewhere") == "/somewhere/~no-such-user/photos"
    urls.remove("~/runs", recursive=True)
    assert list(tmp_path.iterdir()) == []


def test_names_that_begin_like_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~backup.png", "~no-such-user/x"):
        assert not urls.exists(name)
        urls.write_bytes(name, b"data")
        assert (tmp_path / name).read_bytes() == urls.read_bytes(name) == b"data"


def test_links_to_folders_are_followed_and_each_folder_is_entered_once(tmp_path):
    for name in ("photos/b/x.png", "elsewhere/deep/y.png", "elsewhere/z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    photos = tmp_path / "photos"
    (photos / "a").symlink_to("b")  # sorts before the folder itself, whose own name counts all the same
    (photos / "c").symlink_to(tmp_path / "elsewhere")
    (photos / "d").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(photos)
    (photos / "gone.png").symlink_to("nowhere")
    (photos / "file.png").symlink_to("b/x.png")
    found = ["b/x.png", "c/deep/y.png", "c/z.png", "file.png", "gone.png"]
    assert list(urls.walk(str(photos))) == list(urls.walk(f"file://{photos}/")) == found


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []

    def sync(number, really=os.fsync):
        synced.append((os.fstat(number).st_ino, (tmp_path / "target").exists()))
        really(number)

    monkeypatch.setattr(os, "fsync", sync)
    (tmp_path / "source").write_bytes(b"data")
    urls.put_file(str(tmp_path / "target"), tmp_path / "source")
    assert synced == [((tmp_path / "target").stat().st_ino, False)]


@pytest.mark.parametrize("key", ["ETag", "LastModified", "etag", "last_modified", "blob_id", "last_commit"])
def test_a_version_is_more_than_the_size_whatever_a_store_calls_it(key):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Store(MemoryFileSystem):
        """Says what the others say: s3fs in capitals, adlfs and gcsfs without, the hub by commits."""

        protocol = f"store-{key.lower()}"
        says = "1"

        def info(self, path, **_):
            return {"name": path, "size": 3, "type": "file", key: self.says}

    fsspec.register_implementation(Store.protocol, Store, clobber=True)
    before = urls.version(f"{Store.protocol}://x")
    Store.says = "2"
    assert urls.version(f"{Store.protocol}://x") != before


def test_reading_no_more_than_so_much(root, tmp_path):
    url = urls.join(root, "ten")
    urls.write_bytes(url, b"0123456789")
    assert urls.read_at_most(url, 10) == b"0123456789"
    with pytest.raises(StorageError, match="ten has more than 9 bytes"):
        urls.read_at_most(url, 9)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "../../../../../../dev/zero"):
        with pytest.raises(StorageError, match="no regular file"):
            urls.read_at_most(str(tmp_path / name), 9)
    with pytest.raises(StorageError, match=r"cannot read .*null byte"):
        urls.read_at_most(str(tmp_path / "a\0b"), 9)


def test_absent_things_are_told_in_one_line(root):
    with pytest.raises(StorageError, match="it does not exist"):
        urls.read_bytes(urls.join(root, "nothing"))
    with pytest.raises(StorageError, match="does not exist"):
        list(urls.walk(urls.join(root, "nowhere")))
    assert urls.ls(urls.join(root, "nowhere")) == []


def test_exclusive_create_keeps_the_first(root):
    urls.mkdirs(root)
    url = urls.join(root, "lease")
    assert urls.create_exclusive(url, b"first")
    assert not urls.create_exclusive(url, b"second")
    assert urls.read_bytes(url) == b"first"


def test_artifact_round_trip(root, tmp_path):
    output = OutputFolder(urls.join(root, "stage"), tmp_path / "scratch")
    output.write_json("x.json", {"a": 1})
    folder = output.local_dir("work")
    (folder / "sub").mkdir()
    (folder / "sub" / "big.bin").write_bytes(b"0" * 1000)
    output.add_folder("data", folder)
    assert sorted(output.files) == ["data/sub/big.bin", "x.json"]
    manifest = {
        "format_version": 1,
        "type": "t",
        "name": "stage",
        "hash": "h",
        "parents": [],
        "config": {},
        "stats": {},
    }
    manifest["files"] = [vars(entry) for entry in output.files.values()]
    urls.write_bytes(urls.join(root, "stage", "manifest.json"), json.dumps(manifest).encode())
    artifact = load_artifact(urls.join(root, "stage"))
    assert artifact.read_json("x.json") == {"a": 1}
    assert artifact.read_bytes("data/sub/big.bin") == b"0" * 1000
    assert {entry.path: entry.bytes for entry in artifact.files}["data/sub/big.bin"] == 1000
    with pytest.raises(ArtifactError, match="descends from no artefact"):
        artifact.parent("images")


def test_a_failed_write_leaves_the_old_content_and_no_rest(tmp_path):
    target = tmp_path / "x.txt"
    urls.write_bytes(str(target), b"old")
    with pytest.raises(TypeError):
        urls.write_bytes(str(target), "not bytes")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "no manifest of Lens"),
        (b'{"type": "x"}', "lacks"),
        (None, "no finished artefact"),
    ],
)
def test_damaged_manifests(tmp_path, content, words):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        load_artifact(str(tmp_path))


def test_newer_format_is_refused(tmp_path):
    manifest = dict.fromkeys(["type", "name", "hash", "files", "parents", "config", "stats"], "x") | {
        "format_version": 2
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="format version 2; this Lens reads version 1"):
        load_artifact(str(tmp_path))


@pytest.mark.parametrize(
    ("url", "base", "resolved"),
    [
        ("data/x", "/home/me", "/home/me/data/x"),
        ("../x", "/home/me", "/home/x"),
        ("/abs", "/home/me", "/abs"),
        ("s3://b/x", "/home/me", "s3://b/x"),
        ("../images", "s3://b/run/dense", "s3://b/run/images"),
        ("x.yaml", "s3://b/run", "s3://b/run/x.yaml"),
    ],
)
def test_resolve(url, base, resolved):
    assert urls.resolve(url, base) == resolved


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("a", "b"), "a/b"),
        (("a/", "/b/", "c"), "a/b/c"),
        (("s3://b", "x"), "s3://b/x"),
        (("/", "x"), "/x"),
        (("a", ""), "a"),
    ],
)
def test_join(parts, joined):
    assert urls.join(*parts) == joined


def test_a_scheme_whose_library_is_missing():
    with pytest.raises((MissingExtraError, StorageError)):
        urls.read_bytes("gs://bucket/x")


def test_pipeline_runs_into_a_bucket(bucket, lens, tmp_path, s3_server):
    file = tmp_path / "p.yaml"
    file.write_text(
        f"run: {bucket}/run\nstages:\n  - {{name: a, type: numbers}}\n  - {{name: t, type: total, source: a}}\n"
    )
    environment = {**s3_server, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = lens("run", str(file), fakes=("good",), **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "total 3\n"
    again = lens("run", str(file), fakes=("good",), **environment)
    assert again.stderr.count("done already") == 2, again.stderr
    assert load_artifact(urls.join(bucket, "run", "t")).parents[0].read_bytes("numbers.txt") == b"0\n1\n2\n"
    urls.write_bytes(urls.join(bucket, "run", ".lock"), b'{"pid": 7, "host": "far", "since": "then"}')
    busy = lens("run", str(file), fakes=("good",), **environment)
    assert busy.returncode == 2
    assert "in use by process 7 on far since then; if that process is gone, remove" in busy.stderr
