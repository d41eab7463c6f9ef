"""The ledger: what every filter said about every image, as `ledger.parquet`, and in sum for the stage's statistics.

    key, name, step, score, threshold, reason

One row for each time that a filter looked at an image, in order; `reason` is null where the image passed. Survivors'
scores are there too, so other thresholds can be tried on the table before the pipeline is run with them.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from lens_core.contracts import Verdict
    from lens_core.storage.artifacts import OutputFolder

__all__ = ["LEDGER", "Ledger"]

LEDGER = "ledger.parquet"

_ROWS = 20_000
_SAMPLE = 10_000
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("name", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("reason", pa.string()),
    ]
)


class Ledger:
    """Rows go to disk in groups, so memory does not grow; a `with` block closes it."""

    def __init__(self, output: OutputFolder):
        self._output = output
        self._file = output.local_dir("ledger") / LEDGER
        self._writer = pq.ParquetWriter(self._file, _SCHEMA, write_page_checksum=True)
        self._rows: list[tuple[Any, ...]] = []
        self.steps: dict[str, _Step] = {}

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        self._flush()
        self._writer.close()
        if raised is None:
            self._output.add_file(LEDGER, self._file)

    def add(self, key: str | None, name: str, step: str, verdict: Verdict, seconds: float = 0.0) -> None:
        """Write down a verdict; `key` is None for a file that could not even be read."""
        self._rows.append((key, name, step, verdict.score, verdict.threshold, verdict.reason))
        self.steps.setdefault(step, _Step()).add(verdict, seconds)
        if len(self._rows) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [list(column) for column in zip(*self._rows, strict=True)]
            self._writer.write_table(pa.table(columns, schema=_SCHEMA))
            self._rows.clear()


class _Step:
    """Running sums of one filter; percentiles come from a fair sample."""

    def __init__(self) -> None:
        self.seen = 0
        self.dropped = 0
        self.seconds = 0.0
        self._scores = 0
        self._sum = 0.0
        self._low = float("inf")
        self._high = float("-inf")
        self._sample: list[float] = []
        self._random = random.Random(0)

    def add(self, verdict: Verdict, seconds: float) -> None:
        self.seen += 1
        self.dropped += verdict.reason is not None
        self.seconds += seconds
        if verdict.score is None:
            return
        score = float(verdict.score)
        self._scores += 1
        self._sum += score
        self._low, self._high = min(self._low, score), max(self._high, score)
        if len(self._sample) < _SAMPLE:
            self._sample.append(score)
        elif (place := self._random.randrange(self._scores)) < _SAMPLE:
            self._sample[place] = score

    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = {"seen": self.seen, "dropped": self.dropped, "seconds": round(self.seconds, 3)}
        if self._scores:
            quantiles = np.percentile(self._sample, _PERCENTILES)
            summary["scores"] = {
                "count": self._scores,
                "mean": self._sum / self._scores,
                "min": self._low,
                **{f"p{name}": float(value) for name, value in zip(_PERCENTILES, quantiles, strict=True)},
                "max": self._high,
            }
        return summary
