"""The images below a folder or bucket, sorted by path, with what files beside them say; bytes are read late.

    a.jpg
    a.txt             its text is the field `txt` of a.jpg
    b.jpg
    metadata.jsonl    {"file_name": "b.jpg", "text": "a fox"} in a line: its other fields are those of b.jpg

The first is what trainers of LoRAs read, the second Hugging Face's `imagefolder`.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lens_core.contracts import ImageRecord
from lens_core.datasets import files
from lens_core.errors import StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_core.datasets.image_folder.config import ImageFolderConfig

__all__ = ["ImageFolder"]

TABLE = "metadata.jsonl"
MAX_TEXT = 64 << 10
"""Bytes of a text beside an image."""


@dataclass(frozen=True)
class _Listing:
    """Paths below the folder: the images, the texts beside them by image, and the tables."""

    images: list[str]
    texts: dict[str, str]
    tables: list[str]


class ImageFolder:
    """Every file below `url` whose name ends like an image; hidden files and folders are left out.

    A text that cannot be read costs its image, as an image that cannot be read does; a table that is wrong, all.
    """

    def __init__(self, config: ImageFolderConfig, *, base: str = ".", seed: int = 0):
        self.config = config
        self.url = urls.resolve(config.url, base)

    def __iter__(self) -> Iterator[ImageRecord]:
        listing = self._list()
        fields = self._fields(listing.tables)
        for path in listing.images:
            name, url = files.as_text(path), urls.join(self.url, path)
            metadata = fields.get(path, {})
            try:
                if path in listing.texts:
                    metadata = {**metadata, "txt": _text(urls.join(self.url, listing.texts[path]))}
            except StorageError as error:
                yield ImageRecord(name=name, read=files.failing(files.as_text(str(error))))
                continue
            yield ImageRecord(
                name=name,
                read=partial(urls.read_bytes, url),
                read_head=partial(files.read_head, url),
                licence=self.config.licence,
                source_url=files.as_text(url),
                metadata=metadata,
            )

    def fingerprint(self) -> str:
        """Hash of the paths, sizes and times of the files."""
        digest = hashlib.sha256()
        listing = self._list()
        for path in (*listing.images, *listing.texts.values(), *listing.tables):
            digest.update(f"{files.as_text(path)}\0{self._version(path)}\n".encode())
        return digest.hexdigest()

    def _version(self, path: str) -> str:
        try:
            return urls.version(urls.join(self.url, path))
        except StorageError:
            return ""  # a dangling link, say: it is reported when it is read

    def _list(self) -> _Listing:
        endings = tuple(f".{ending.lower().lstrip('.')}" for ending in self.config.endings)
        paths = [path for path in urls.walk(self.url) if not any(part.startswith(".") for part in path.split("/"))]
        images = [path for path in paths if path.lower().endswith(endings)]
        if not images:
            raise StorageError(f"{self.url} holds no image (no file that ends in {', '.join(endings)})")
        texts = {_stem(path): path for path in paths if path.lower().endswith(".txt")}
        return _Listing(
            images=images,
            texts={path: texts[_stem(path)] for path in images if _stem(path) in texts},
            tables=[path for path in paths if posixpath.basename(path) == TABLE],
        )

    def _fields(self, tables: list[str]) -> dict[str, dict[str, Any]]:
        """What the tables say of the images, by path; a line about a file that is not there any more does no harm."""
        found: dict[str, dict[str, Any]] = {}
        for table in tables:
            url = urls.join(self.url, table)
            with urls.told(url, "read"), urls.open_read(url) as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    name, fields = _parsed(line, f"{url}:{number}")
                    path = posixpath.normpath(posixpath.join(posixpath.dirname(table), name))
                    if path in found:
                        raise StorageError(f"{url}:{number} is the second line about {name!r}; a field may hold a list")
                    found[path] = fields
        return found


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _text(url: str) -> str:
    data = urls.read_at_most(url, MAX_TEXT)
    try:
        return data.decode("utf-8-sig")  # Windows puts a mark at the beginning
    except UnicodeDecodeError as error:
        raise StorageError(f"{url} is not UTF-8 text") from error


def _parsed(line: bytes, where: str) -> tuple[str, dict[str, Any]]:
    """The file that a line of a table names, and its other fields."""
    try:
        fields = json.loads(line)
        name = fields.pop("file_name", None) if isinstance(fields, dict) else None
        if not isinstance(name, str):
            raise StorageError(f"{where} does not say in 'file_name' which image it is about")
        return name, files.plain(fields)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{where} is not valid JSON: {error}") from error
