"""The journal: what was sent, what it cost and what came back, so that a killed run pays for nothing twice.

SQLite in WAL mode survives SIGKILL at any moment. It lies on a local disk: on network file systems it may hang.

    outcomes    an image's latest outcome
    attempts    a request that went, or goes, to the server: what was set aside for it, and in the end what it cost
    batches     a batch, written down before the server hears of it; `intent` stands in the batch's metadata there

An attempt is `sent` until its outcome is known. One that a dead process left behind is `lost`: it may have been billed,
so the whole reservation counts as spent. The attempts of a batch stay `sent` until the batch is collected.
"""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from lens_caption.engine.budget import NOTHING, Amount
from lens_core.contracts import CaptionOutcome

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["AttemptRow", "BatchRow", "Journal", "Settlement"]

BatchState = Literal["intended", "submitted", "written", "collected", "abandoned"]

_TABLES = """
CREATE TABLE IF NOT EXISTS outcomes (
    key TEXT PRIMARY KEY, status TEXT NOT NULL, text TEXT NOT NULL, detail TEXT NOT NULL, provenance TEXT NOT NULL,
    layers TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, request TEXT NOT NULL, batch TEXT, input_tokens INTEGER NOT NULL,
    state TEXT NOT NULL, usd TEXT, tokens INTEGER NOT NULL, images INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_of_batch ON attempts (batch) WHERE batch IS NOT NULL;
CREATE INDEX IF NOT EXISTS attempts_sent ON attempts (state) WHERE state = 'sent';
CREATE TABLE IF NOT EXISTS batches (
    intent TEXT PRIMARY KEY, state TEXT NOT NULL, id TEXT NOT NULL, file TEXT NOT NULL, created REAL NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class Settlement:
    """What became of an attempt: `cost` is what counts as spent."""

    attempt: int
    cost: Amount
    lost: bool = False


@dataclass(frozen=True, kw_only=True)
class BatchRow:
    """A batch as journalled; `id` and `file` are the server's, empty until known.

    One that is `written` is a request file on this machine: `file` is its name.
    """

    intent: str
    state: BatchState
    id: str
    file: str
    created: float


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    """An attempt that is under way."""

    id: int
    key: str
    request: str
    input_tokens: int
    reserved: Amount


class Journal:
    """One stage's journal."""

    def __init__(self, path: Path):
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(_TABLES)

    # Outcomes

    def write(self, outcomes: Iterable[CaptionOutcome]) -> None:
        """Keep outcomes; a later one replaces an earlier one of the same image."""
        with self._transaction():
            self._put(outcomes)

    def read(self) -> dict[str, CaptionOutcome]:
        """All outcomes."""
        return {row[0]: _outcome(row) for row in self._database.execute("SELECT * FROM outcomes")}

    def get(self, key: str) -> CaptionOutcome | None:
        """The outcome of one image."""
        row = self._database.execute("SELECT * FROM outcomes WHERE key = ?", (key,)).fetchone()
        return _outcome(row) if row else None

    def statuses(self) -> dict[str, str]:
        """The status of every image that has an outcome; texts stay on disk."""
        return dict(self._database.execute("SELECT key, status FROM outcomes").fetchall())

    # Attempts

    def begin(self, key: str, request: str, input_tokens: int, reserved: Amount) -> int:
        """Write down a request that is about to be sent; returns the attempt's number."""
        cursor = self._database.execute(_INSERT_ATTEMPT, (key, request, None, input_tokens, *_columns(reserved)))
        return int(cursor.lastrowid or 0)

    def settle(self, settlements: Iterable[Settlement], outcomes: Iterable[CaptionOutcome] = ()) -> None:
        """Write down what attempts cost and what came of them, all or nothing."""
        with self._transaction():
            self._settle(settlements)
            self._put(outcomes)

    def lose_unfinished(self) -> int:
        """Count what a process that is gone had in flight as spent; returns how many requests that were."""
        cursor = self._database.execute("UPDATE attempts SET state = 'lost' WHERE state = 'sent' AND batch IS NULL")
        return cursor.rowcount

    def spent(self) -> Amount:
        """Everything that is spent or may be, but for what waits in batches."""
        return self._sum("NOT (state = 'sent' AND batch IS NOT NULL)")[0]

    def waiting(self) -> tuple[Amount, int]:
        """What is set aside for requests that wait in batches, and how many those are."""
        return self._sum("state = 'sent' AND batch IS NOT NULL")

    def waiting_tokens(self) -> int:
        """About how many input tokens wait in batches."""
        query = "SELECT SUM(input_tokens) FROM attempts WHERE state = 'sent' AND batch IS NOT NULL"
        return int(self._database.execute(query).fetchone()[0] or 0)

    def under_way(self) -> dict[str, str]:
        """The images that wait in batches, and their batch's intent."""
        return dict(
            self._database.execute("SELECT key, batch FROM attempts WHERE state = 'sent' AND batch IS NOT NULL")
        )

    # Batches

    def intend(self, intent: str, requests: Iterable[tuple[str, str, int, Amount]], *, file: str = "") -> None:
        """Write down a batch before the server hears of it, or a request file before it has its name.

        Args:
            intent: the batch's id, ours.
            requests: of each its image key, hash, estimated input tokens, and what is set aside for it.
            file: name of the request file; "" for a batch.
        """
        state: BatchState = "written" if file else "intended"
        with self._durably(), self._transaction():
            self._database.execute("INSERT INTO batches VALUES (?, ?, '', ?, ?)", (intent, state, file, time.time()))
            self._database.executemany(
                _INSERT_ATTEMPT, ((key, hash_, intent, size, *_columns(cost)) for key, hash_, size, cost in requests)
            )

    def submitted(self, intent: str, *, id: str, file: str) -> None:
        """The server has it."""
        with self._durably():
            self._database.execute(
                "UPDATE batches SET state = 'submitted', id = ?, file = ? WHERE intent = ?", (id, file, intent)
            )

    def collect(self, intent: str, settlements: Iterable[Settlement], outcomes: Iterable[CaptionOutcome]) -> None:
        """The batch is over: what its requests cost and what came of them, all or nothing."""
        with self._durably(), self._transaction():
            self._settle(settlements)
            self._put(outcomes)
            self._database.execute("UPDATE batches SET state = 'collected' WHERE intent = ?", (intent,))

    def abandon(self, intent: str) -> None:
        """The server never had it: nothing was spent."""
        with self._durably(), self._transaction():
            self._database.execute("DELETE FROM attempts WHERE batch = ?", (intent,))
            self._database.execute("UPDATE batches SET state = 'abandoned' WHERE intent = ?", (intent,))

    def open_batches(self) -> list[BatchRow]:
        """Those at the server that are not over, the oldest first."""
        return self._batches("state IN ('intended', 'submitted')")

    def request_files(self) -> list[BatchRow]:
        """Request files that are not answered, the oldest first."""
        return self._batches("state = 'written'")

    def asked(self) -> dict[str, int]:
        """How often each image was asked about in batches and request files."""
        return dict(
            self._database.execute("SELECT key, COUNT(*) FROM attempts WHERE batch IS NOT NULL GROUP BY key").fetchall()
        )

    def attempts_of(self, intent: str) -> dict[str, AttemptRow]:
        """A batch's requests by image key."""
        rows = self._database.execute(
            "SELECT id, key, request, input_tokens, usd, tokens, images FROM attempts WHERE batch = ?", (intent,)
        )
        return {
            row[1]: AttemptRow(
                id=row[0], key=row[1], request=row[2], input_tokens=row[3], reserved=_amount(row[4], row[5], row[6])
            )
            for row in rows
        }

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _batches(self, condition: str) -> list[BatchRow]:
        rows = self._database.execute(
            f"SELECT intent, state, id, file, created FROM batches WHERE {condition} ORDER BY created"
        )
        return [BatchRow(intent=r[0], state=r[1], id=r[2], file=r[3], created=r[4]) for r in rows]

    def _sum(self, condition: str) -> tuple[Amount, int]:
        total, unknown, count = NOTHING, False, 0
        for usd, tokens, images in self._database.execute(
            f"SELECT usd, tokens, images FROM attempts WHERE {condition}"
        ):
            unknown = unknown or usd is None
            total += Amount(Decimal(usd or 0), tokens, images)
            count += 1
        return (Amount(None, total.tokens, total.images) if unknown else total), count

    def _put(self, outcomes: Iterable[CaptionOutcome]) -> None:
        rows = (
            (item.key, item.status, item.text, _whole(item.detail), _json(item.provenance), _json(item.layers))
            for item in outcomes
        )
        self._database.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _settle(self, settlements: Iterable[Settlement]) -> None:
        self._database.executemany(
            "UPDATE attempts SET state = ?, usd = ?, tokens = ?, images = ? WHERE id = ?",
            (("lost" if item.lost else "settled", *_columns(item.cost), item.attempt) for item in settlements),
        )

    def _transaction(self) -> _Transaction:
        return _Transaction(self._database, "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")

    def _durably(self) -> _Transaction:
        """What concerns whole batches is on the disk itself before anything follows from it, even if power fails."""
        relaxed = "PRAGMA synchronous=NORMAL"
        return _Transaction(self._database, "PRAGMA synchronous=FULL", relaxed, relaxed)


class _Transaction:
    def __init__(self, database: sqlite3.Connection, begin: str, end: str, undo: str):
        self._database, self._begin, self._end, self._undo = database, begin, end, undo

    def __enter__(self) -> None:
        self._database.execute(self._begin)

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        self._database.execute(self._undo if raised else self._end)


_INSERT_ATTEMPT = """
INSERT INTO attempts (key, request, batch, input_tokens, state, usd, tokens, images)
VALUES (?, ?, ?, ?, 'sent', ?, ?, ?)
"""


def _columns(amount: Amount) -> tuple[str | None, int, int]:
    return None if amount.usd is None else str(amount.usd), amount.tokens, amount.images


def _amount(usd: str | None, tokens: int, images: int) -> Amount:
    return Amount(None if usd is None else Decimal(usd), tokens, images)


def _json(value: object) -> str:
    return _whole(json.dumps(dict(value), ensure_ascii=False))  # type: ignore[call-overload]


def _whole(text: str) -> str:
    """Without halves of characters, which a server's JSON may have (lone surrogates), and no file can."""
    return text.encode(errors="replace").decode()


def _outcome(row: tuple[str, ...]) -> CaptionOutcome:
    key, status, text, detail, provenance, layers = row
    return CaptionOutcome(
        key=key,
        status=status,  # type: ignore[arg-type]
        text=text,
        detail=detail,
        provenance=json.loads(provenance),
        layers=json.loads(layers),
    )
