"""What was billed, written down by the server alone: tests and rehearsals compare it with what the client believes."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, overload

__all__ = ["Ledger", "LedgerEntry"]


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One billed answer.

    Args:
        image: sha256 of the image file as received; of several images, of the first.
        model: as asked for.
        input_tokens: text and images.
        output_tokens: with reasoning.
        outcome: "ok", or the fault that the answer met.
        custom_id: of the line in a batch, or the header `X-Client-Request-Id`.
        tier: "default", "flex", "priority" or "batch".
        cost: dollars; None for a model without a price.
        reasoning_tokens: those of the output that nobody sees.
        number: that the image bears, if it bears one.
        response_id: of the answer.
        batch: id of the batch; empty for one by one.
        at: seconds since 1970, by the server's clock.
    """

    image: str
    model: str
    input_tokens: int
    output_tokens: int
    outcome: str
    custom_id: str = ""
    tier: str = "default"
    cost: Decimal | None = None
    reasoning_tokens: int = 0
    number: int | None = None
    response_id: str = ""
    batch: str = ""
    at: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As in the file; money as text, so that no cent is lost."""
        return dataclasses.asdict(self) | {"cost": None if self.cost is None else str(self.cost)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LedgerEntry:
        """The reverse of `to_json`."""
        return cls(**value | {"cost": None if value["cost"] is None else Decimal(value["cost"])})


class Ledger(Sequence[LedgerEntry]):
    """The entries in the order of billing.

    Args:
        path: a JSON Lines file; each entry is in it before the answer leaves. A file that is there is continued, and a
            last line that was cut off by a kill is dropped.
    """

    def __init__(self, path: str | Path | None = None):
        self._lock = threading.Lock()
        self._entries: list[LedgerEntry] = []
        self.spent = Decimal(0)
        """Dollars so far; answers of models without a price count nothing."""
        self._file: int | None = None
        if path is not None:
            path = Path(path)
            known = path.read_bytes() if path.exists() else b""
            whole = known[: known.rfind(b"\n") + 1]
            self._entries = [LedgerEntry.from_json(json.loads(line)) for line in whole.splitlines()]
            self.spent = sum((entry.cost for entry in self._entries if entry.cost is not None), Decimal(0))
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.ftruncate(self._file, len(whole))
            os.lseek(self._file, 0, os.SEEK_END)

    def add(self, entry: LedgerEntry) -> None:
        """Bill an answer."""
        with self._lock:
            if self._file is not None:
                os.write(self._file, json.dumps(entry.to_json()).encode() + b"\n")
            self._entries.append(entry)
            self.spent += entry.cost or 0

    def close(self) -> None:
        """Close the file; what was billed can still be read."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    @overload
    def __getitem__(self, index: int) -> LedgerEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[LedgerEntry]: ...
    def __getitem__(self, index: int | slice) -> LedgerEntry | list[LedgerEntry]:
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def images(self) -> Counter[str]:
        """How often each image was billed, by the sha256 of the file as received."""
        return Counter(entry.image for entry in self.entries())

    def custom_ids(self) -> Counter[str]:
        """How often each custom id was billed; answers without one are left out."""
        return Counter(entry.custom_id for entry in self.entries() if entry.custom_id)

    def billed_again(self) -> int:
        """How many answers were billed for an image that had been billed before."""
        return sum(self.images().values()) - len(self.images())

    def input_tokens(self) -> int:
        """All of them."""
        return sum(entry.input_tokens for entry in self.entries())

    def output_tokens(self) -> int:
        """All of them, with reasoning."""
        return sum(entry.output_tokens for entry in self.entries())

    def total_cost(self) -> Decimal:
        """Dollars in all.

        Raises:
            ValueError: a model has no price, so nobody knows.
        """
        total = Decimal(0)
        for entry in self.entries():
            if entry.cost is None:
                raise ValueError(
                    f"the server has no price for {entry.model}: FakeServer(prices=…) or (like=…) sets one"
                )
            total += entry.cost
        return total

    def entries(self, *, image: str | None = None, custom_id: str | None = None) -> list[LedgerEntry]:
        """A copy, perhaps of one image's or one custom id's entries only."""
        return [
            entry
            for entry in self._entries[:]
            if (image is None or entry.image == image) and (custom_id is None or entry.custom_id == custom_id)
        ]

    def totals(self) -> dict[str, Any]:
        """Counts and sums as JSON."""
        entries = self.entries()
        costs = [entry.cost for entry in entries]
        return {
            "billed": len(entries),
            "images": len({entry.image for entry in entries}),
            "billed_again": len(entries) - len({entry.image for entry in entries}),
            "input_tokens": sum(entry.input_tokens for entry in entries),
            "output_tokens": sum(entry.output_tokens for entry in entries),
            "cost": None if None in costs else str(sum((cost for cost in costs if cost is not None), Decimal(0))),
            "outcomes": dict(Counter(entry.outcome for entry in entries)),
        }
