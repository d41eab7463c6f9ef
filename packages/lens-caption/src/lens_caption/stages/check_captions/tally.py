"""What the check-captions stage counts and writes down while rows pass through it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lens_caption.quality.statistics import LayerStatistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from lens_caption.layers import ImageLookup
    from lens_caption.quality.check import Finding
    from lens_core.storage.artifacts import OutputFolder
    from lens_core.storage.captions import CaptionRow

__all__ = ["Tally"]

CHECKS, FAILURES = "checks.jsonl", "failures.jsonl"


class Tally:
    """Counts, and two files that grow line by line: every finding, and every row without a caption.

    Args:
        folder: a local one.
        images: by which names are found.
    """

    def __init__(self, folder: Path, images: ImageLookup):
        self._files = {name: (folder / name).open("w", encoding="utf-8") for name in (CHECKS, FAILURES)}
        self._folder, self._images = folder, images
        self.before = 0
        self.by_gate: Counter[tuple[str, str]] = Counter()
        self.by_status: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.statistics = LayerStatistics()

    def gated(self, row: CaptionRow, findings: list[Finding]) -> None:
        """Count a caption that the gates have seen, and what they found."""
        self.before += row.status == "ok" or any(item.action == "reject" for item in findings)
        self.find(findings)

    def find(self, findings: Iterable[Finding]) -> None:
        """Write down what is wrong with one caption; for each gate it counts once, however often it fails it."""
        seen = set()
        for item in findings:
            self._write(CHECKS, {"name": self._name(item.key), **asdict(item)})
            self.examples.setdefault(item.gate, item.reason)
            seen.add((item.gate, item.action))
        self.by_gate.update(seen)

    def passing(self, rows: Iterable[CaptionRow]) -> Iterator[CaptionRow]:
        """Count the rows as they are written."""
        for row in rows:
            self.statistics.add(row)
            self.by_status[row.status] += 1
            if row.status != "ok":
                facts = {"key": row.key, "layer": row.layer, "status": row.status, "detail": row.detail}
                self._write(FAILURES, {"name": self._name(row.key), **facts})
            yield row

    def by(self, action: str) -> dict[str, int]:
        """Captions by the gate that rejects or flags them."""
        return {gate: count for (gate, found), count in self.by_gate.items() if found == action}

    def close(self) -> None:
        """End the files."""
        for file in self._files.values():
            file.close()

    def publish(self, output: OutputFolder) -> None:
        """Move the files in, once they are closed."""
        for name in self._files:
            output.add_file(name, self._folder / name)

    def _name(self, key: str) -> str:
        row = self._images.row(key)
        return row["name"] if row else ""

    def _write(self, file: str, line: dict[str, Any]) -> None:
        self._files[file].write(json.dumps(line, ensure_ascii=False) + "\n")
