"""The captions from which the judge's are drawn, in a scratch database on disk."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CaptionPool"]


class CaptionPool:
    """The captions of a layer, in a scratch database on disk; they are drawn by lot, shard by shard.

    Args:
        path: a file that does not exist yet, on a local disk.
        seed: decides the lots.
    """

    def __init__(self, path: Path, seed: int):
        self._seed = seed
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE captions (key TEXT PRIMARY KEY, text TEXT, shard TEXT, lot INTEGER);"
            "CREATE INDEX by_shard ON captions (shard, lot); CREATE INDEX by_lot ON captions (lot); BEGIN"
        )

    def add(self, key: str, text: str, shard: str) -> None:
        """Put a caption in."""
        lot = _lot(f"{self._seed} {key}")
        self._database.execute("INSERT INTO captions VALUES (?, ?, ?, ?)", (key, text, shard, lot))

    def sizes(self) -> dict[str, int]:
        """Captions of each shard."""
        return dict(self._database.execute("SELECT shard, count(*) FROM captions GROUP BY shard ORDER BY shard"))

    def draw(self, shard: str, start: int, count: int) -> list[str]:
        """Keys of a shard, from a place in the order of the lots."""
        query = "SELECT key FROM captions WHERE shard = ? ORDER BY lot, key LIMIT ? OFFSET ?"
        return [row[0] for row in self._database.execute(query, (shard, count, start))]

    def get(self, key: str) -> tuple[str, str]:
        """Text and shard."""
        found: tuple[str, str] = self._database.execute(
            "SELECT text, shard FROM captions WHERE key = ?", (key,)
        ).fetchone()
        return found

    def any_text(self, word: str) -> str:
        """The text of some caption, which the word decides."""
        query = "SELECT text FROM captions WHERE lot >= ? ORDER BY lot LIMIT 1"
        found = self._database.execute(query, (_lot(word),)).fetchone()
        return str((found or self._database.execute("SELECT text FROM captions ORDER BY lot LIMIT 1").fetchone())[0])

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def _lot(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), signed=True)
