"""One run folder, one writer; or several peers, where a stage lets machines share its work.

On a file system the lock is the kernel's (`flock`), so it ends with the process that holds it, however that ends.
On an object store it is a file created exclusively; one that a killed process left behind has to be removed by hand,
and the message says so. A store that cannot create exclusively is looked at before and after: that refuses a second
writer, unless both start in the same moment.

Peers hold the lock together, against anybody who wants the folder alone. Among themselves they share out the stages by
leases in `.peers/`.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from lens_core.errors import RunFolderError
from lens_core.storage import urls
from lens_core.storage.leases import Leases

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

__all__ = ["LOCK", "PEERS", "locked", "shared"]

LOCK = ".lock"
PEERS = ".peers"
_TRIES = 20
_SETTLE_S = 1.0


@contextlib.contextmanager
def locked(run_url: str) -> Iterator[None]:
    """Hold the lock of a run folder, alone.

    Raises:
        RunFolderError: somebody else holds it; the message says who.
    """
    if urls.is_local(run_url):
        with _open(run_url) as file:
            if not _flock(run_url, file, fcntl.LOCK_EX):
                raise _in_use(run_url, _read(file))
            _describe(run_url, file)
            yield
        return
    url = urls.join(run_url, LOCK)
    if not _create(url, _owner()):
        raise _in_use(run_url, urls.read_text(url), f"; if that process is gone, remove {url}")
    try:
        yield
    finally:
        urls.remove(url)


@contextlib.contextmanager
def shared(run_url: str, *, worker: str, lease_s: float) -> Iterator[Leases]:
    """Hold the lock of a run folder together with the other peers; the leases are among them.

    Args:
        run_url: the run folder.
        worker: this process's id among the peers.
        lease_s: seconds of silence after which a peer counts as dead.

    Raises:
        RunFolderError: somebody wants the folder alone; the message says who.
        StorageError: the store cannot keep two machines apart.
    """
    peers = urls.join(run_url, PEERS)
    if urls.is_local(run_url):
        with _open(run_url) as file:
            for _ in range(_TRIES):
                # The first peer says who it is; for that moment it holds the lock alone.
                if _flock(run_url, file, fcntl.LOCK_EX):
                    _describe(run_url, file)
                if _flock(run_url, file, fcntl.LOCK_SH):
                    break
                time.sleep(0.05)
            else:
                raise _in_use(run_url, _read(file))
            with Leases(peers, worker, ttl_s=lease_s) as leases:
                yield leases
            if _flock(run_url, file, fcntl.LOCK_EX):
                urls.remove(peers, recursive=True)
        return
    url = urls.join(run_url, LOCK)
    if urls.exists(url) or not urls.create_exclusive(url, json.dumps(_owner(shared=True)).encode()):
        owner = urls.read_text(url)
        if '"shared": true' not in owner:
            raise _in_use(run_url, owner, f"; if that process is gone, remove {url}")
    try:
        with Leases(peers, worker, ttl_s=lease_s) as leases:
            yield leases
    finally:
        if not urls.ls(urls.join(peers, "workers")):
            urls.remove(url)


def _create(url: str, owner: dict[str, Any]) -> bool:
    """Create the lock's file; False if it is there."""
    data = json.dumps(owner).encode()
    if urls.exists(url):
        return False
    if urls.keeps_apart(url.rsplit("/", 1)[0]):
        return urls.create_exclusive(url, data)
    urls.write_bytes(url, data)
    time.sleep(_SETTLE_S)
    return urls.read_bytes(url) == data


def _open(run_url: str) -> TextIO:
    with _told(run_url, "written"):
        return urls.local_path(urls.join(run_url, LOCK)).open("a+", encoding="utf-8")


def _flock(run_url: str, file: TextIO, kind: int) -> bool:
    with _told(run_url, "locked"):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _describe(run_url: str, file: TextIO) -> None:
    with _told(run_url, "written"):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), json.dumps(_owner()).encode())  # buffered, what did not fit would be written at `close`


@contextlib.contextmanager
def _told(run_url: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"the run folder {run_url} cannot be {what}: {(error.strerror or '').lower()}") from error


def _read(file: TextIO) -> str:
    file.seek(0)
    return file.read()


def _owner(**more: Any) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now, **more}


def _in_use(run_url: str, owner: str, advice: str = "") -> RunFolderError:
    try:
        known = json.loads(owner)
        who = f"process {known['pid']} on {known['host']} since {known['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return RunFolderError(f"the run folder {run_url} is in use by {who}{advice}")
