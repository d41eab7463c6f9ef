"""Who works on what where several machines share a folder: claims by exclusive creation, and heartbeats.

    workers/ID        a counter that this worker raises every few seconds; removed when it ends in order
    claims/NAME.0     who holds NAME: created exclusively, and never changed
    claims/NAME.1     who holds it since the worker of NAME.0 was found dead; and so on

No two clocks are compared. A worker is dead, for whoever looks, once its counter has stood still for `ttl_s` seconds
of the looker's own clock, or is gone. To be wrong about that, because a machine slept, costs work and never a result:
only one worker can create the next number, and results are published by exclusive creation too, so that the first
counts. A worker that comes back sees that its claim was taken (`lost`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from lens_core.errors import StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Leases", "local_cache", "own_folder", "worker_of"]

_BEATS_PER_TTL = 5


class Leases:
    """One worker's view of a shared folder; use it in a `with` block, which beats its heart.

    Args:
        url: the folder, empty or used by other workers.
        worker: this one's id; a process that goes on where a dead one stopped takes the same.
        ttl_s: seconds of silence after which a worker counts as dead. The same for all.

    Raises:
        StorageError: on entry, the store cannot create a file exclusively.
    """

    def __init__(self, url: str, worker: str, *, ttl_s: float):
        self.worker = worker
        self.beat_s = ttl_s / _BEATS_PER_TTL
        self.ttl_s = ttl_s
        self._url = url
        self._held: set[str] = set()
        self._lost: set[str] = set()
        self._holders: dict[str, list[str]] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._alive = 1
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="leases", daemon=True)

    def __enter__(self) -> Leases:
        urls.mkdirs(self._url)
        if not urls.keeps_apart(self._url):
            raise StorageError(
                f"{self._url}: this store cannot create a file exclusively, so it cannot keep two machines apart; "
                "let one machine do the work"
            )
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # then it looks dead a little later
            urls.remove(urls.join(self._url, "workers", self.worker))

    def claim(self, name: str) -> bool:
        """Take a piece of work: one that is free, one's own from before, or a dead worker's. False if it is taken."""
        with self._lock:
            holders = self._read_holders(name)
            if not holders or (holders[-1] != self.worker and self._is_dead(holders[-1])):
                if not urls.create_exclusive(self._claim(name, len(holders)), self.worker.encode()):
                    return False
                holders.append(self.worker)
            if holders[-1] != self.worker:
                return False
            self._held.add(name)
            self._lost.discard(name)
            return True

    def done(self, name: str) -> None:
        """The work is published: nobody need watch the claim any more."""
        self._held.discard(name)

    def lost(self, name: str) -> bool:
        """Whether another worker took a claim of ours, because it heard nothing of us; known after a beat."""
        return name in self._lost

    def workers(self) -> int:
        """How many are at work, this one included."""
        return self._alive

    def pause(self) -> None:
        """Wait for others: a beat long."""
        time.sleep(self.beat_s)

    def _keep_beating(self) -> None:
        while not self._ended.wait(self.beat_s):
            with contextlib.suppress(StorageError):  # one that fails for long is taken for dead, as it should be
                self._beat()

    def _beat(self) -> None:
        urls.write_bytes(urls.join(self._url, "workers", self.worker), uuid.uuid4().hex.encode())
        with self._lock:
            others = set(urls.ls(urls.join(self._url, "workers"))) - {self.worker}
            self._alive = 1 + sum(not self._is_dead(other) for other in others if not other.startswith("."))
            for name in list(self._held):
                if self._read_holders(name)[-1] != self.worker:
                    self._lost.add(name)

    def _is_dead(self, worker: str) -> bool:
        url, now = urls.join(self._url, "workers", worker), time.monotonic()
        try:
            said = urls.read_bytes(url)
        except StorageError:
            if urls.exists(url):
                raise
            return True
        before, since = self._seen.get(worker, (b"", now))
        if said != before:
            self._seen[worker] = said, now
            return False
        return now - since > self.ttl_s

    def _read_holders(self, name: str) -> list[str]:
        """All who ever held it; what was read once does not change."""
        holders = self._holders.setdefault(name, [])
        while urls.exists(url := self._claim(name, len(holders))):
            holders.append(urls.read_text(url))
        return holders

    def _claim(self, name: str, number: int) -> str:
        return urls.join(self._url, "claims", f"{name}.{number}")


def local_cache(run_url: str) -> Path:
    """Where this machine keeps what it needs for a run that lies elsewhere: below the user's cache folder."""
    name = str(urls.local_path(run_url).resolve()) if urls.is_local(run_url) else run_url
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lens" / hashlib.sha256(name.encode()).hexdigest()[:16]


@contextlib.contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A folder on this machine's disk that no other living process has, and that the next process finds again.

    Its lock is the kernel's, so that it ends with the process, however that ends.

    Raises:
        StorageError: there can be no such folder, or none that is locked.
    """
    for number in range(1 << 16):
        folder = parent / f"worker-{number}"
        urls.mkdirs(str(folder))
        with contextlib.ExitStack() as held:
            with urls.told(str(folder), "lock"):
                lock = held.enter_context((folder / ".lock").open("a"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
            yield folder
            return


def worker_of(folder: Path) -> str:
    """The id of the worker whose folder it is, made up at the first call."""
    file = folder / "worker"
    if not file.exists():
        urls.write_bytes(str(file), uuid.uuid4().hex.encode())
    return file.read_text()
