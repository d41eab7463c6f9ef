"""What sources that read a few large files share: which files, in what state, and facts that fit into JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
from typing import TYPE_CHECKING, Any

from lens_core.errors import StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["as_text", "failing", "find", "fingerprint", "image_bytes", "plain", "read_head"]

MAX_BYTES = 1 << 30
"""Of an image that a table names."""

_REMOTE = tuple(f"{scheme}://" for scheme in ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"))


def find(url: str, ending: str) -> list[str]:
    """The file itself, or all files below a folder that end so, sorted; hidden ones are left out.

    Raises:
        StorageError: it is absent, or holds no such file.
    """
    if url.endswith(ending):
        if not urls.exists(url):
            raise StorageError(f"{url} does not exist")
        return [url]
    found = [
        urls.join(url, path)
        for path in urls.walk(url)
        if path.endswith(ending) and not any(part.startswith(".") for part in path.split("/"))
    ]
    if not found:
        raise StorageError(f"{url} holds no file that ends in {ending}")
    return found


def fingerprint(files: Iterable[str]) -> str:
    """Hash of the files' paths, sizes and times."""
    digest = hashlib.sha256()
    for url in files:
        digest.update(f"{as_text(url)}\0{urls.version(url)}\n".encode())
    return digest.hexdigest()


def as_text(path: str) -> str:
    """A path that can be written as UTF-8: file systems and tars also hold names in other encodings."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def failing(reason: str) -> Callable[[], bytes]:
    """The `read` of a record that cannot be read; it raises `StorageError`."""

    def read() -> bytes:
        raise StorageError(reason)

    return read


def read_head(url: str, size: int) -> bytes:
    """The first bytes of a file, or all if there are fewer; a store is asked for no more.

    Raises:
        StorageError: it is absent or cannot be read.
    """
    (head,) = urls.read_ranges([(url, 0, size)])
    if isinstance(head, StorageError):
        raise head
    return head


def image_bytes(value: Any, folder: str) -> bytes:
    """The image in a table's cell: bytes, a path or URL, or Hugging Face's pair of both.

    A table may come from anybody, so a path must stay below its folder, and a URL must lead to a web server or a store.

    Args:
        value: the cell.
        folder: of the table; relative paths start there.

    Raises:
        StorageError: there is no image in it, or its file may not be read, or cannot.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return urls.read_at_most(_allowed(value, folder), MAX_BYTES)
    raise StorageError("the cell is empty")


def _allowed(value: str, folder: str) -> str:
    """The path or URL that a cell names, in full."""
    # `Path.resolve` would follow links, of which a Hugging Face cache is made.
    folder = os.path.abspath(urls.local_path(folder)) if urls.is_local(folder) else folder.rstrip("/")  # noqa: PTH100
    url = urls.resolve(value, folder)
    inside = url.startswith(f"{folder}/") and ".." not in url.split("/")
    # At "::" fsspec would go on to another file system, such as this machine's.
    chained = "::" in url and not urls.is_local(url)
    if chained or not (inside or url.startswith(_REMOTE)):
        raise StorageError(f"{value!r} lies outside of the table's folder {folder}")
    return url


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON can hold them: times as text, no bytes, None for what is no number, and only UTF-8."""
    return {_utf8(name): _plain(value) for name, value in facts.items() if not isinstance(value, bytes)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return plain({str(name): item for name, item in value.items()})
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value if not isinstance(item, bytes)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return _utf8(value)
    try:
        json.dumps(value)
    except TypeError:
        return _utf8(str(value))
    return value


def _utf8(text: str) -> str:
    """JSON can spell half a character, `"\\ud83d"`, which UTF-8 cannot hold."""
    return text.encode(errors="backslashreplace").decode()
