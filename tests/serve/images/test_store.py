"""The store: whole files under our own names, in folders and buckets; when it fails, nothing is left half-written."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import threading
from datetime import UTC, datetime

import pytest

from lens_core.errors import ConfigError, StorageError
from lens_core.storage import urls
from lens_serve.config import ListenSettings, OutputSettings
from lens_serve.images.store import Store, StoreError, new_name

DATA = bytes(range(256)) * 1024


def put(store, name, data=DATA):
    return asyncio.run(store.put(name, data))


def test_a_file_comes_back_whole(root):
    store, name = Store(root), new_name("png")
    url = put(store, name)
    assert urls.read_bytes(url) == DATA
    assert urls.read_bytes(urls.join(root, name)) == DATA
    assert list(urls.walk(root)) == [name]


def test_many_at_once(root):
    store, names = Store(root), [new_name("webp") for _ in range(20)]

    async def all_of_them():
        return await asyncio.gather(*(store.put(name, name.encode()) for name in names))

    assert [urls.read_bytes(url).decode() for url in asyncio.run(all_of_them())] == names


def test_names_say_the_day_and_nothing_else():
    names = {new_name("jpeg") for _ in range(100)}
    assert len(names) == 100
    today = f"{datetime.now(UTC):%Y/%m/%d}"
    assert all(re.fullmatch(r"\d{4}/\d\d/\d\d/[0-9a-f]{32}\.jpeg", name) for name in names)
    assert any(name.startswith(today) for name in names) or today != f"{datetime.now(UTC):%Y/%m/%d}"


def test_clients_are_told_the_public_url(tmp_path):
    store = Store(str(tmp_path), "https://images.example.org/pictures/")
    assert put(store, "2026/11/26/a.png") == "https://images.example.org/pictures/2026/11/26/a.png"
    assert (tmp_path / "2026/11/26/a.png").read_bytes() == DATA


def test_a_folder_without_a_public_url_is_told_as_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert put(Store("out put"), "a.png") == f"{tmp_path.as_uri()}/out%20put/a.png"


def test_settings_choose():
    listen = ListenSettings()
    assert Store.of(OutputSettings(), listen) is None
    assert put(Store.of(OutputSettings(store="memory://lens-store"), listen), "b.png") == "memory://lens-store/b.png"
    given = OutputSettings(store="memory://lens-store", public_url="https://x.example")
    store = Store.of(given, ListenSettings(keys="keys.json"))
    assert put(store, "a.png") == "https://x.example/a.png"
    assert urls.read_bytes("memory://lens-store/a.png") == DATA


@pytest.mark.parametrize("listen", [{"keys": "keys.json"}, {"host": "0.0.0.0", "insecure": True}], ids=str)
@pytest.mark.parametrize("store", ["memory://lens-store", "/srv/pictures"])
def test_strangers_are_not_told_where_the_store_is(listen, store):
    with pytest.raises(ConfigError, match=r"output\.public_url: ") as error:
        Store.of(OutputSettings(store=store), ListenSettings(**listen))
    assert "\n" not in str(error.value)
    assert Store.of(OutputSettings(), ListenSettings(**listen)) is None


def test_a_full_disk_leaves_nothing(tmp_path):
    """No larger file may be written for the moment; to a writer that is a full disk."""
    store = Store(str(tmp_path / "images"))
    put(store, "before.png", b"small")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(DATA) // 2, limits[1]))
    try:
        with pytest.raises(StoreError) as error:
            put(store, "2026/a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(error.value) == "the image was drawn, but could not be stored"
    assert "file too large" in str(error.value.__cause__)  # for the log
    assert [path.name for path in (tmp_path / "images").rglob("*") if path.is_file()] == ["before.png"]
    assert put(store, "2026/a.png").endswith("/2026/a.png")


def test_a_disk_that_hangs_is_given_up(tmp_path, monkeypatch):
    """As a network's may: a pipe that nobody reads holds up whoever opens it."""
    monkeypatch.setattr("lens_serve.images.store.TIMEOUT_S", 0.1)
    store = Store(str(tmp_path))
    pipe, held = tmp_path / "pipe", threading.Event()
    os.mkfifo(pipe)

    def write(*_):
        pipe.write_bytes(b"")
        held.set()

    monkeypatch.setattr(urls, "write_bytes", write)
    with pytest.raises(StoreError, match="could not be stored"):
        put(store, "a.png")
    pipe.read_bytes()
    assert held.wait(60)


def test_clients_are_not_told_where_our_files_are(tmp_path):
    store = Store(str(tmp_path))
    (tmp_path / "2026").write_text("in the way")
    with pytest.raises(StoreError) as error:
        put(store, "2026/11/a.png")
    assert str(tmp_path) not in str(error.value)
    assert str(tmp_path) in str(error.value.__cause__)


def test_a_bucket_that_is_not_there_fails_the_request(bucket):
    with pytest.raises(StoreError):
        put(Store("s3://no-such-bucket-of-lens/x"), "a.png")


def test_a_folder_that_cannot_be_made_is_told_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/folder"):
        Store(str(tmp_path / "file" / "folder"))
