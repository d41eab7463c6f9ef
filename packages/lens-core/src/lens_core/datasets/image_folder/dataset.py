"""The images below a folder or bucket, sorted by path; bytes are read late."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

from lens_core.contracts import ImageRecord
from lens_core.datasets import files
from lens_core.errors import StorageError
from lens_core.storage import urls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lens_core.datasets.image_folder.config import ImageFolderConfig

__all__ = ["ImageFolder"]


class ImageFolder:
    """Every file below `url` whose name ends like an image; hidden files and folders are left out."""

    def __init__(self, config: ImageFolderConfig, *, base: str = ".", seed: int = 0):
        self.config = config
        self.url = urls.resolve(config.url, base)

    def __iter__(self) -> Iterator[ImageRecord]:
        for path in self._paths():
            url = urls.join(self.url, path)
            yield ImageRecord(
                name=_as_text(path),
                read=partial(urls.read_bytes, url),
                read_head=partial(files.read_head, url),
                licence=self.config.licence,
                source_url=_as_text(url),
            )

    def fingerprint(self) -> str:
        """Hash of the paths, sizes and times of the files."""
        digest = hashlib.sha256()
        for path in self._paths():
            digest.update(f"{_as_text(path)}\0{self._version(path)}\n".encode())
        return digest.hexdigest()

    def _version(self, path: str) -> str:
        try:
            return urls.version(urls.join(self.url, path))
        except StorageError:
            return ""  # a dangling link, say: it is reported when it is read

    def _paths(self) -> list[str]:
        endings = tuple(f".{ending.lower().lstrip('.')}" for ending in self.config.endings)
        paths = [
            path
            for path in urls.walk(self.url)
            if path.lower().endswith(endings) and not any(part.startswith(".") for part in path.split("/"))
        ]
        if not paths:
            raise StorageError(f"{self.url} holds no image (no file that ends in {', '.join(endings)})")
        return paths


def _as_text(path: str) -> str:
    """A path that can be written as UTF-8: file systems also hold names in other encodings."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")
