"""The captions that are corrected, by image: read from disk, in whatever process makes the requests."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lens_core.storage.captions import CaptionRow

__all__ = ["EarlierCaptions"]


@dataclass(frozen=True)
class EarlierCaptions:
    """Gives a recipe its input; it can be pickled, since all it holds is where the captions lie."""

    path: Path

    @classmethod
    def store(cls, path: Path, rows: Iterable[CaptionRow]) -> EarlierCaptions:
        """Keep the captions in a file that does not exist yet, on a local disk; rows without one are left out."""
        with closing(sqlite3.connect(path)) as database:
            database.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
                "CREATE TABLE captions (key TEXT PRIMARY KEY, text TEXT NOT NULL)"
            )
            captions = ((row.key, row.text) for row in rows if row.status == "ok")
            database.executemany("INSERT INTO captions VALUES (?, ?)", captions)
            database.commit()
        return cls(path)

    def keys(self) -> list[str]:
        """Of the images that have a caption, in the order of the rows."""
        with closing(sqlite3.connect(self.path)) as database:
            return [key for (key,) in database.execute("SELECT key FROM captions ORDER BY rowid")]

    def __call__(self, key: str) -> dict[str, str]:
        """The inputs for an image."""
        with closing(sqlite3.connect(self.path)) as database:
            (text,) = database.execute("SELECT text FROM captions WHERE key = ?", (key,)).fetchone()
        return {"caption": text}
