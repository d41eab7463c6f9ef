"""The journal: every finished outcome on local disk, at once, so that a killed run never pays for it again.

SQLite in WAL mode survives SIGKILL at any moment. It lies on a local disk: on network file systems it may hang.
"""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

from lens_core.contracts import CaptionOutcome

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Journal"]

_TABLE = """
CREATE TABLE IF NOT EXISTS outcomes (
    key TEXT PRIMARY KEY, status TEXT NOT NULL, text TEXT NOT NULL, detail TEXT NOT NULL, provenance TEXT NOT NULL
) WITHOUT ROWID
"""


class Journal:
    """Outcomes by image key."""

    def __init__(self, path: Path):
        self._database = sqlite3.connect(path)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute(_TABLE)

    def write(self, outcomes: Iterable[CaptionOutcome]) -> None:
        """Keep outcomes; a later one replaces an earlier one of the same image."""
        rows = [
            (item.key, item.status, item.text, item.detail, json.dumps(dict(item.provenance), ensure_ascii=False))
            for item in outcomes
        ]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?)", rows)

    def read(self) -> dict[str, CaptionOutcome]:
        """All outcomes."""
        return {
            key: CaptionOutcome(key=key, status=status, text=text, detail=detail, provenance=json.loads(provenance))
            for key, status, text, detail, provenance in self._database.execute("SELECT * FROM outcomes")
        }

    def close(self) -> None:
        """Close the file."""
        self._database.close()
