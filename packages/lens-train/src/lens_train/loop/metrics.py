"""What a run writes down while it goes: a line of JSON for every logged step, and the same as curves.

Losses are told by noise level (quarters of [0, 1]) and by resolution, because the mean over a step hides both. Sums
are over all ranks: every rank gives its own, and the totals of one exchange say the rest.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

from lens_train.checkpoint.writing import writing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["METRICS", "LossTable", "MetricsFile", "quartile", "resolution"]

METRICS = "metrics.jsonl"


class LossTable:
    """Sums and counts of sample losses by noise level and resolution, as one vector that ranks can add up.

    Args:
        sides: the resolutions of the whole training set; more than eight are not told apart.
    """

    def __init__(self, sides: Sequence[int]):
        self._sides = sorted(sides) if len(sides) <= 8 else []
        names = [f"loss_t{number + 1}" for number in range(4)]
        if len(self._sides) > 1:
            names += [f"loss_{side}px" for side in self._sides]
        self._place = {name: number for number, name in enumerate(names)}

    def vector(self, losses: Sequence[float], times: Sequence[float], sides: Sequence[int]) -> list[float]:
        """For every name a sum, then for every name a count."""
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for loss, t, side in zip(losses, times, sides, strict=True):
            for name in (f"loss_t{quartile(t) + 1}", f"loss_{side}px"):
                sums[name] += loss
                counts[name] += 1
        return [sums[name] for name in self._place] + [float(counts[name]) for name in self._place]

    def means(self, vector: Sequence[float]) -> dict[str, float]:
        """The mean of every name that had a sample."""
        half = len(self._place)
        return {name: vector[n] / vector[half + n] for name, n in self._place.items() if vector[half + n]}


class MetricsFile:
    """The file of metrics: one JSON object a line, on the disk before `write` returns.

    Args:
        folder: where it lies.
        step: the step that the run goes on from; lines beyond it are dropped, for they are about to be written again.

    Raises:
        StorageError: it cannot be written; so does `write`.
    """

    def __init__(self, folder: Path, *, step: int):
        self.path = folder / METRICS
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if step and self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        with writing(self.path):
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(self.path)
            self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line; JSON has no NaN, so what is not finite becomes null."""
        told = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **told}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # a line that could not be written has been told, and is tried once more here
            self._file.close()


def quartile(t: float) -> int:
    """Which quarter of [0, 1] a time lies in, 0 to 3."""
    return min(3, math.floor(4 * t))


def resolution(height: int, width: int) -> int:
    """The resolution that sizes of about one area share: the side of that square, to 64 pixels where that is small."""
    side = round(math.sqrt(height * width))
    return round(side / 64) * 64 if side >= 256 else side
