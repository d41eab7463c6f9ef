"""One run folder, one writer.

On a file system the lock is the kernel's (`flock`), so it ends with the process that holds it, however that ends.
On an object store it is a file created exclusively; one that a killed process left behind has to be removed by hand,
and the message says so.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
from typing import TYPE_CHECKING

from lens_core.errors import RunFolderError, StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LOCK", "locked"]

LOCK = ".lock"


@contextlib.contextmanager
def locked(run_url: str) -> Iterator[None]:
    """Hold the lock of a run folder.

    Raises:
        RunFolderError: somebody else holds it; the message says who.
    """
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    url = urls.join(run_url, LOCK)
    if not urls.is_local(run_url):
        if not urls.create_exclusive(url, json.dumps(owner).encode()):
            raise RunFolderError(
                f"the run folder {run_url} is in use by {_owner(urls.read_text(url))}; "
                f"if that process is gone, remove {url}"
            )
        try:
            yield
        finally:
            urls.remove(url)
        return
    try:
        file = urls.local_path(url).open("a+", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"the run folder {run_url} cannot be written: {(error.strerror or '').lower()}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunFolderError(f"the run folder {run_url} is in use by {_owner(file.read())}") from None
        file.truncate(0)
        file.write(json.dumps(owner))
        file.flush()
        yield


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (ValueError, KeyError, TypeError, StorageError):
        return "another process"
