"""What sources that read a few large files share: which files, in what state, and facts that fit into JSON."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

from lens_core.errors import StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["find", "fingerprint", "image_bytes", "plain", "read_head"]


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
        digest.update(f"{url}\0{urls.version(url)}\n".encode())
    return digest.hexdigest()


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

    Args:
        value: the cell.
        folder: where relative paths start.

    Raises:
        StorageError: there is no image in it, or its file cannot be read.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return urls.read_bytes(urls.resolve(value, folder))
    raise StorageError("the cell is empty")


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON can hold them: times as text, no bytes, None for what is no number."""
    return {name: _plain(value) for name, value in facts.items() if not isinstance(value, bytes)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return plain({str(name): item for name, item in value.items()})
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value if not isinstance(item, bytes)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        json.dumps(value)
    except TypeError:
        return str(value)
    return value
