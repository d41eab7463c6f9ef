"""Claims and heartbeats among machines that share a folder: on a file system, and on a real S3 server of our own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lens_core.errors import RunFolderError, StorageError
from lens_core.pipeline.lock import LOCK, locked, shared
from lens_core.storage import urls
from lens_core.storage.leases import Leases, own_folder, worker_of
from s3 import Between

TTL_S = 3.0

HOLD = """
import sys, time
from lens_core.storage.leases import Leases
url, worker, ttl_s, name = sys.argv[1:]
with Leases(url, worker, ttl_s=float(ttl_s)) as leases:
    print(leases.claim(name), flush=True)
    while not leases.lost(name):
        time.sleep(0.02)
    print("lost", leases.claim(name), flush=True)
"""


@pytest.fixture
def holder():
    """Start a process that claims something and holds it."""
    started = []

    def start(url, worker, name="work"):
        arguments = [sys.executable, "-c", HOLD, url, worker, str(TTL_S), name]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "True\n"
        return process

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def within(seconds, condition):
    """Wait until it holds; how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never happened"
        time.sleep(0.05)
    return time.monotonic() - began


def test_of_many_contenders_one_holds_each_piece(root):
    names = [f"{number:03d}" for number in range(12)]
    held: dict[str, list[str]] = {name: [] for name in names}
    start = threading.Barrier(6)

    def contend(worker):
        with Leases(root, worker, ttl_s=30) as leases:
            start.wait()
            for name in names:
                if leases.claim(name):
                    held[name].append(worker)
            start.wait()  # a worker that ends gives up what it holds

    threads = [threading.Thread(target=contend, args=(f"w{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(workers) for workers in held.values()] == [1] * len(names)


def test_a_claim_outlives_a_silence_that_is_shorter_than_the_ttl_and_no_longer_one(root, holder):
    process = holder(root, "one")
    with Leases(root, "two", ttl_s=TTL_S) as leases:
        assert leases.workers() == 2
        time.sleep(2 * TTL_S)
        assert not leases.claim("work")
        process.kill()
        process.wait()
        took = within(20, lambda: leases.claim("work"))
        assert took > 0.5 * TTL_S  # the last heartbeat is at most a fifth of it old
        assert leases.claim("work")
        within(20, lambda: leases.workers() == 1)


def test_one_that_slept_learns_that_its_claim_was_taken(root, holder):
    process = holder(root, "one")
    with Leases(root, "two", ttl_s=TTL_S) as leases:
        process.send_signal(signal.SIGSTOP)
        within(20, lambda: leases.claim("work"))
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "lost False\n"
        assert leases.claim("work")
        assert not leases.lost("work")


def test_whoever_ends_in_order_gives_up_at_once(root):
    with Leases(root, "one", ttl_s=600) as one:
        assert one.claim("work")
        with Leases(root, "two", ttl_s=600) as two:
            assert not two.claim("work")
    with Leases(root, "two", ttl_s=600) as two:
        assert two.claim("work")


def test_after_a_kill_the_same_worker_goes_on_at_once(root, holder):
    process = holder(root, "one")
    process.kill()
    process.wait()
    with Leases(root, "two", ttl_s=600) as two, Leases(root, "one", ttl_s=600) as one:
        assert not two.claim("work")
        assert one.claim("work")


def test_of_two_that_find_a_third_dead_one_takes_over(root, holder):
    process = holder(root, "dead")
    with Leases(root, "one", ttl_s=TTL_S) as one, Leases(root, "two", ttl_s=TTL_S) as two:
        process.kill()
        process.wait()
        taken = {}

        def wait_for(name, leases):
            while not taken:
                if leases.claim("work"):
                    taken[name] = True
                time.sleep(0.01)

        threads = [threading.Thread(target=wait_for, args=pair) for pair in (("one", one), ("two", two))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(taken) == 1
        assert one.claim("work") != two.claim("work")


def test_clocks_may_say_what_they_like(tmp_path, holder):
    """Times of files are a clock too, that of the server: they are not looked at."""
    holder(str(tmp_path), "one")
    with Leases(str(tmp_path), "two", ttl_s=TTL_S) as leases:
        for year in range(12):
            for file in (tmp_path / "workers").glob("*"):
                try:
                    os.utime(file, (year * 3e7, 4e9 - year))
                except FileNotFoundError:
                    continue  # it was just replaced
            assert not leases.claim("work")
            time.sleep(TTL_S / 6)


def test_a_file_that_is_created_exclusively_is_whole_from_the_first_moment(root):
    url, data = urls.join(root, "segment"), os.urandom(8 << 20)
    urls.mkdirs(root)
    seen = []

    def read():
        while not seen:
            if urls.exists(url):
                seen.append(urls.read_bytes(url))

    thread = threading.Thread(target=read)
    thread.start()
    assert urls.create_exclusive(url, data)
    thread.join(30)
    assert seen == [data]
    assert urls.ls(root) == ["segment"]
    assert not urls.create_exclusive(url, b"other")
    assert urls.ls(root) == ["segment"]


def test_a_create_whose_answer_was_lost_succeeds(bucket, s3_server, monkeypatch):
    with Between(s3_server["AWS_ENDPOINT_URL"], lose=1) as between:
        speak_to(between, monkeypatch)
        assert urls.create_exclusive(urls.join(bucket, "x"), b"mine")
        assert between.left_to_lose == 0
        assert not urls.create_exclusive(urls.join(bucket, "x"), b"yours")
    speak_to(None, monkeypatch)


def test_a_store_that_takes_both_of_two_writers_is_found_out(bucket, s3_server, monkeypatch):
    """As S3's relatives do that do not know the header: the second write succeeds without a word."""
    with Between(s3_server["AWS_ENDPOINT_URL"], without="if-none-match") as between:
        speak_to(between, monkeypatch)
        assert urls.create_exclusive(urls.join(bucket, "x"), b"mine")
        assert urls.create_exclusive(urls.join(bucket, "x"), b"yours")
        assert not urls.keeps_apart(bucket)
        with pytest.raises(
            StorageError, match="cannot create a file exclusively, so it cannot keep two machines apart"
        ):
            Leases(urls.join(bucket, "leases"), "one", ttl_s=TTL_S).__enter__()
        with pytest.raises(StorageError), shared(bucket, worker="one", lease_s=TTL_S):
            pytest.fail("it was let in")
        assert not urls.exists(urls.join(bucket, LOCK))
        # One writer may work there; the second is refused.
        with locked(bucket), pytest.raises(RunFolderError, match="is in use by process"), locked(bucket):
            pytest.fail("it was let in")
        with locked(bucket):
            pass
    speak_to(None, monkeypatch)


def test_a_store_that_only_looks_before_it_writes_is_no_guard():
    assert not urls.keeps_apart("memory://lens")
    with pytest.raises(StorageError, match="this store cannot create a file exclusively"):
        urls.create_exclusive("memory://lens/x", b"")


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_alone_or_together_but_not_both(kind, request, tmp_path):
    place = str(tmp_path) if kind == "folder" else request.getfixturevalue("bucket")
    with shared(place, worker="one", lease_s=TTL_S), shared(place, worker="two", lease_s=TTL_S) as two:
        assert two.workers() == 2
        with pytest.raises(RunFolderError, match="is in use by process"), locked(place):
            pytest.fail("it was let in")
    with locked(place), pytest.raises(RunFolderError, match="is in use by process"):
        shared(place, worker="one", lease_s=TTL_S).__enter__()
    with shared(place, worker="one", lease_s=TTL_S):
        pass
    assert LOCK not in urls.ls(place) or kind == "folder"


def test_every_process_has_a_folder_of_its_own_and_finds_it_again(tmp_path):
    with own_folder(tmp_path) as first:
        one = worker_of(first)
        with own_folder(tmp_path) as second:
            assert second != first
            two = worker_of(second)
            assert two != one
    code = (
        "import sys, pathlib\nfrom lens_core.storage.leases import own_folder, worker_of\n"
        "with own_folder(pathlib.Path(sys.argv[1])) as folder:\n print(worker_of(folder), flush=True)\n input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == one
    with own_folder(tmp_path) as folder:
        assert worker_of(folder) == two
        process.kill()
        process.communicate()
    with own_folder(tmp_path) as folder:
        assert worker_of(folder) == one
        assert Path(folder).parent == tmp_path


def speak_to(between, monkeypatch):
    """Talk to the store through something, or directly again."""
    import s3fs
    from fsspec.config import conf, set_conf_env

    if between is not None:
        for name, value in between.environment.items():
            monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    conf.pop("s3", None)
    if between is not None:
        set_conf_env(conf)
