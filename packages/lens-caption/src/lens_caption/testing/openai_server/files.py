"""Uploaded files and results, kept on disk while the server runs."""

from __future__ import annotations

import functools
import hashlib
import itertools
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens_caption.testing.openai_server.clock import Clock

__all__ = ["FileStore", "StoredFile", "page"]


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file and what the API says of it."""

    id: str
    filename: str
    purpose: str
    created_at: int
    size: int
    sha256: str
    expires_at: int | None
    path: Path

    def to_json(self) -> dict[str, Any]:
        """As `GET /v1/files/{id}` says it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.size,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class FileStore:
    """Files by id; those past their time are gone."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, StoredFile] = {}
        self._numbers = itertools.count(1)

    @functools.cached_property
    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="fake-openai-"))

    def new_path(self) -> Path:
        """Where to write a file that is about to be added."""
        return self._folder / f"{next(self._numbers):06d}"

    def add(self, path: Path, filename: str, purpose: str, expires_after_s: int | None = None) -> StoredFile:
        """Take a file over that was written to `new_path()`."""
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        now = int(self._clock.now())
        stored = StoredFile(
            id=f"file-{path.name}{digest[:10]}",
            filename=filename,
            purpose=purpose,
            created_at=now,
            size=path.stat().st_size,
            sha256=digest,
            expires_at=None if expires_after_s is None else now + expires_after_s,
            path=path,
        )
        with self._lock:
            self._files[stored.id] = stored
        return stored

    def get(self, file_id: str) -> StoredFile:
        """Raises `KeyError` if there is none, or its time is over."""
        stored = self._files[file_id]
        if stored.expires_at is not None and stored.expires_at <= self._clock.now():
            raise KeyError(file_id)
        return stored

    def read(self, file_id: str) -> bytes:
        """A file's bytes; raises `KeyError`."""
        return self.get(file_id).path.read_bytes()

    def delete(self, file_id: str) -> None:
        """Raises `KeyError` if there is none."""
        with self._lock:
            self._files.pop(file_id).path.unlink(missing_ok=True)

    def all(self, purpose: str | None = None) -> list[dict[str, Any]]:
        """The newest first."""
        now = self._clock.now()
        return [
            stored.to_json()
            for stored in reversed(list(self._files.values()))
            if (purpose in {None, stored.purpose}) and (stored.expires_at is None or stored.expires_at > now)
        ]

    def close(self) -> None:
        """Remove everything."""
        if "_folder" in self.__dict__:
            shutil.rmtree(self._folder, ignore_errors=True)


def page(items: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """A page of a list as the API gives it: the items behind `after`; raises `KeyError` if there is no such item."""
    start = 0
    if after:
        position = next((n for n, item in enumerate(items) if item["id"] == after), None)
        if position is None:
            raise KeyError(after)
        start = position + 1
    data = items[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + limit < len(items),
    }
