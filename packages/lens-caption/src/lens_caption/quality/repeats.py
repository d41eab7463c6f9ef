"""What captions have in common: sentences and whole captions that come again, counted in a scratch database on disk.

Texts are known by eight bytes of their hash. Memory holds what turns out to be shared, and no more.
"""

from __future__ import annotations

import hashlib
import sqlite3
from itertools import groupby
from typing import TYPE_CHECKING

from lens_caption.quality.gates import countable_sentences
from lens_caption.quality.text import normal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lens_caption.quality.config import GatesConfig, SharedSentenceGate

__all__ = ["Repeats", "digest_of"]

_TABLES = """
PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;
CREATE TABLE sentences (layer TEXT NOT NULL, digest INTEGER NOT NULL);
CREATE TABLE captions (layer TEXT NOT NULL, digest INTEGER NOT NULL, key TEXT NOT NULL);
BEGIN;
"""
_SHARED = "SELECT digest, count(*) AS number FROM sentences WHERE layer = ? GROUP BY digest HAVING number >= ?"
_REPEATED = """
SELECT captions.layer, captions.digest, key FROM captions
JOIN (SELECT layer, digest FROM captions GROUP BY layer, digest HAVING count(DISTINCT key) > 1) AS repeated
ON captions.layer = repeated.layer AND captions.digest = repeated.digest
ORDER BY captions.layer, captions.digest, captions.rowid
"""


class Repeats:
    """Counts over the captions of all layers.

    Args:
        path: a file that does not exist yet, on a local disk.
        gates: say which sentences and captions are long enough to count.
    """

    def __init__(self, path: Path, gates: GatesConfig):
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(_TABLES)
        self._gates = gates
        self._captions: dict[str, int] = {}

    def add(self, key: str, layer: str, text: str) -> None:
        """Count a caption."""
        self._captions[layer] = self._captions.get(layer, 0) + 1
        if self._gates.shared_sentence.action != "skip":
            found = countable_sentences(text, self._gates.shared_sentence)
            self._database.executemany(
                "INSERT INTO sentences VALUES (?, ?)", ((layer, digest_of(wording)) for wording in found)
            )
        if self._gates.repeated_caption.action != "skip":
            wording = normal(text)
            if wording.count(" ") + 1 >= self._gates.repeated_caption.min_words:
                self._database.execute("INSERT INTO captions VALUES (?, ?, ?)", (layer, digest_of(wording), key))

    def shared_sentences(self) -> dict[tuple[str, int], int]:
        """Images by layer and digest of a sentence, of the sentences that as many images share as the gate says."""
        gate: SharedSentenceGate = self._gates.shared_sentence
        return {
            (layer, digest): number
            for layer, captions in self._captions.items()
            for digest, number in self._database.execute(
                _SHARED, (layer, max(gate.min_images, gate.min_share * captions))
            )
        }

    def repeated_captions(self) -> Iterator[tuple[str, int, Iterator[str]]]:
        """Layer and digest of each caption that several images have, and the images' keys in the order of the rows."""
        for (layer, digest), rows in groupby(self._database.execute(_REPEATED), key=lambda row: (row[0], row[1])):
            yield layer, digest, (row[2] for row in rows)

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def digest_of(wording: str) -> int:
    """Eight bytes of a text's hash, as SQLite holds integers."""
    return int.from_bytes(hashlib.blake2b(wording.encode(), digest_size=8).digest(), signed=True)
