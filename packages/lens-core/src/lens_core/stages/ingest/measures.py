"""What filters have measured, by image key, kept beside the run: a stage that was killed, or whose thresholds have
changed, does not measure again.

This is a cache on local disk and no part of the artefact. The same bytes always give the same values, so a lost or
damaged file costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Measures"]

Value = float | str | bytes


class Measures:
    """Values by image key and name in an SQLite file; `close` keeps what was put since the last `commit`, too."""

    def __init__(self, file: Path):
        self._file = file
        try:
            self._base = self._open()
        except sqlite3.DatabaseError:
            for path in file.parent.glob(f"{file.name}*"):
                path.unlink()
            self._base = self._open()

    def of(self, key: str) -> dict[str, Value]:
        """All that is known of an image."""
        return dict(self._base.execute("SELECT name, value FROM measures WHERE key = ?", (bytes.fromhex(key),)))

    def put(self, key: str, values: Mapping[str, Value]) -> None:
        """Remember what was measured."""
        rows = [(bytes.fromhex(key), name, value) for name, value in values.items()]
        self._base.executemany("INSERT OR REPLACE INTO measures VALUES (?, ?, ?)", rows)

    def commit(self) -> None:
        """From here on a kill loses nothing of this."""
        self._base.commit()

    def close(self) -> None:
        """Commit, and close the file."""
        with contextlib.closing(self._base):
            self._base.commit()

    def _open(self) -> sqlite3.Connection:
        base = sqlite3.connect(self._file)
        try:
            # One writer, which holds the run's lock; WAL without shared memory, so that any local disk will do.
            base.execute("PRAGMA locking_mode = EXCLUSIVE")
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = NORMAL")
            base.execute(
                "CREATE TABLE IF NOT EXISTS measures"
                " (key BLOB, name TEXT, value NOT NULL, PRIMARY KEY (key, name)) WITHOUT ROWID"
            )
            base.execute("SELECT key, name, value FROM measures LIMIT 1").fetchall()
        except sqlite3.DatabaseError:
            base.close()
            raise
        return base
