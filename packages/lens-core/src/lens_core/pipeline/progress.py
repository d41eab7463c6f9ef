"""Tell people, and machines, how far a run is.

On a terminal there is one live Rich bar per stage. Elsewhere (a log file, CI) a plain line appears at once, and then
every 30 seconds even if nothing moved, because a silent run looks like a dead one. Everything also goes to the run's
`events.jsonl`, one JSON object a line.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PLAIN_INTERVAL_S", "EventLog", "Progress"]

PLAIN_INTERVAL_S = 30.0
_EVENT_INTERVAL_S = 5.0


class EventLog:
    """Appends JSON lines to a local file: `{"time": …, "event": …, "stage": …, …}`."""

    def __init__(self, path: Path | None):
        self._file = path.open("a", encoding="utf-8") if path else None

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        if self._file:
            self._file.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


class Progress:
    """The progress of one stage at a time.

    Args:
        stream: where people read (default: standard error). Machines read `events`, which the runner sets.
        live: draw a bar; default: whether `stream` is a terminal.
    """

    def __init__(self, *, stream: TextIO | None = None, live: bool | None = None):
        self._stream = stream or sys.stderr
        self.events = EventLog(None)
        self._live = self._stream.isatty() if live is None else live
        self._console = Console(file=self._stream, highlight=False, soft_wrap=True, force_terminal=self._live or None)
        self._lock = threading.Lock()
        self._stage = ""
        self._total: float | None = None
        self._unit = ""
        self._done = 0.0
        self._metrics: dict[str, Any] = {}
        self._started = 0.0
        self._counted_since: tuple[float, float] | None = None
        self._last_event = 0.0
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._ticker: _Ticker | None = None
        self.stop_asked = False

    def open(self, stage: str) -> None:
        """Begin a stage (called by the runner)."""
        self._stage, self._total, self._unit, self._done, self._metrics = stage, None, "", 0.0, {}
        self._started = time.monotonic()
        self.events.write("stage-start", stage=stage)
        if self._live:
            self._bar = RichProgress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[counts]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("[dim]{task.fields[metrics]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(escape(stage), total=None, counts="", metrics="")
            self._bar.start()
        else:
            self._ticker = _Ticker(self._plain_line)

    def start(self, total: float | None, unit: str) -> None:
        """Say how much there is to do (None: unknown) and in what unit."""
        with self._lock:
            self._total, self._unit, self._done, self._metrics = total, unit, 0.0, {}
            self._counted_since = None
            if self._bar and self._task is not None:
                self._bar.reset(self._task, total=total)
            self._draw()
        if not self._live:
            self._plain_line()

    def update(self, done: float, **metrics: Any) -> None:
        """Say how much is done, and what else is worth watching (loss, images/s)."""
        with self._lock:
            self._done = done
            # A run that goes on from a saved state begins in the middle.
            self._counted_since = self._counted_since or (time.monotonic(), done)
            self._metrics.update(metrics)
            self._draw()
            now = time.monotonic()
            if now - self._last_event >= _EVENT_INTERVAL_S:
                self._last_event = now
                self.events.write(
                    "progress",
                    stage=self._stage,
                    done=done,
                    total=self._total,
                    unit=self._unit,
                    **_plain(self._metrics),
                )

    def note(self, message: str) -> None:
        """One line for the user that stays."""
        self._console.print(f"  {escape(message)}")
        self.events.write("note", stage=self._stage, message=message)

    def warn(self, message: str) -> None:
        """One line of warning that stays."""
        self._console.print(f"  [yellow]warning:[/] {escape(message)}")
        self.events.write("warning", stage=self._stage, message=message)

    def heading(self, message: str, **fields: Any) -> None:
        """A line about the run itself: a stage begins, is skipped, is done (called by the runner)."""
        self._console.print(f"[bold cyan]▸[/] {escape(message)}" if self._live else escape(message))
        self.events.write("run", message=message, **fields)

    def close(self, event: str, **fields: Any) -> None:
        """End the stage (called by the runner)."""
        if self._bar:
            self._bar.stop()
            self._bar = None
        if self._ticker:
            self._ticker.stop()
            self._ticker = None
        self.events.write(event, stage=self._stage, seconds=round(time.monotonic() - self._started, 3), **fields)

    def _draw(self) -> None:
        if self._bar and self._task is not None:
            self._bar.update(
                self._task, total=self._total, completed=self._done, counts=self._counts(), metrics=self._metric_text()
            )

    def _plain_line(self) -> None:
        elapsed = time.monotonic() - self._started
        left = ""
        if self._total and self._counted_since and self._counted_since[1] < self._done < self._total:
            since, base = self._counted_since
            pace = (time.monotonic() - since) / (self._done - base)
            left = f", about {_clock(pace * (self._total - self._done))} left"
        percent = f" ({100 * self._done / self._total:.0f} %)" if self._total else ""
        metrics = f"  {self._metric_text()}" if self._metrics else ""
        print(
            f"  {self._stage}: {self._counts() or 'working'}{percent}, {_clock(elapsed)}{left}{metrics}",
            file=self._stream,
            flush=True,
        )

    def _counts(self) -> str:
        if not self._unit:
            return ""
        total = f"/{_number(self._total)}" if self._total is not None else ""
        return f"{_number(self._done)}{total} {self._unit}"

    def _metric_text(self) -> str:
        return "  ".join(f"{name} {_number(value)}" for name, value in self._metrics.items())


class _Ticker:
    """Calls a function every `PLAIN_INTERVAL_S` seconds on a thread of its own."""

    def __init__(self, function: Any):
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def _run(self, function: Any) -> None:
        while not self._stopped.wait(PLAIN_INTERVAL_S):
            function()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 or abs(value) >= 1e7 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    # Events are strict JSON, which knows no NaN.
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    }
