"""Tell people, and machines, how far a run is.

On a terminal there is one live Rich bar per stage. Elsewhere (a log file, CI) a plain line appears at once, and then
every 30 seconds even if nothing moved, because a silent run looks like a dead one. Everything also goes to the run's
`events.jsonl`, one JSON object a line.

A stage that runs stages of its own hands each such run a part of its progress; what they say is told as
"captions: dense, seed 1 (5 of 12) > model: 40/300 steps".
"""

from __future__ import annotations

import contextlib
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
        """Append one event; when the disk is full it is lost, and whoever needs the space more says so."""
        if self._file:
            with contextlib.suppress(OSError):
                self._file.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")
                self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file:
            with contextlib.suppress(OSError):
                self._file.close()


class Progress:
    """The progress of one stage at a time.

    Args:
        stream: where people read (default: standard error). Machines read `events`, which the runner sets.
        live: draw a bar; default: whether `stream` is a terminal.
        whole: of which this is a part; made by `part`, which says what `part_name` it has.
    """

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        live: bool | None = None,
        whole: Progress | None = None,
        part_name: str = "",
    ):
        self._stream = stream or sys.stderr
        self.events: EventLog = whole.events if whole else EventLog(None)
        self._live = self._stream.isatty() if live is None else live
        self._whole = whole
        self._within = f"{whole._title}: {part_name}" if whole else ""
        self._console: Console = whole._console if whole else _console(self._stream, live=self._live)
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
        self._parts_at_work = 0
        self._stop_asked = False

    @property
    def stop_asked(self) -> bool:
        """Whether the user, or a signal, asked the run to stop; parts are asked with the whole."""
        return self._stop_asked or (self._whole is not None and self._whole.stop_asked)

    @stop_asked.setter
    def stop_asked(self, asked: bool) -> None:
        self._stop_asked = asked

    def part(self, name: str) -> Progress:
        """The progress of stages that the stage at work runs itself; several parts may be at work at once."""
        return Progress(stream=self._stream, live=self._live, whole=self, part_name=name)

    def open(self, stage: str) -> None:
        """Begin a stage (called by the runner)."""
        self._stage, self._total, self._unit, self._done, self._metrics = stage, None, "", 0.0, {}
        self._started = time.monotonic()
        self._tell("stage-start")
        if self._whole:
            self._whole._parts_at_work += 1
        if self._live:
            self._bar = self._whole._bar if self._whole and self._whole._bar else self._new_bar()
            self._task = self._bar.add_task(escape(self._title), total=None, counts="", metrics="")
        else:
            self._ticker = _Ticker(self._tick)

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
                self._tell("progress", done=done, total=self._total, unit=self._unit, **_plain(self._metrics))

    def note(self, message: str) -> None:
        """One line for the user that stays."""
        self._console.print(f"  {escape(self._whose(message))}")
        self._tell("note", message=message)

    def warn(self, message: str) -> None:
        """One line of warning that stays."""
        self._console.print(f"  [yellow]warning:[/] {escape(self._whose(message))}")
        self._tell("warning", message=message)

    def heading(self, message: str, **fields: Any) -> None:
        """A line about the run itself: a stage begins, is skipped, is done (called by the runner)."""
        text = f"{self._within} > {message.strip()}" if self._whole else message
        self._console.print(f"[bold cyan]▸[/] {escape(text)}" if self._live else escape(text))
        self._tell("run", message=message, **fields)

    def close(self, event: str, **fields: Any) -> None:
        """End the stage (called by the runner)."""
        if self._bar and self._whole and self._bar is self._whole._bar:
            assert self._task is not None
            self._bar.remove_task(self._task)
        elif self._bar:
            self._bar.stop()
        self._bar = None
        if self._ticker:
            self._ticker.stop()
            self._ticker = None
        if self._whole:
            self._whole._parts_at_work -= 1
        self._tell(event, seconds=round(time.monotonic() - self._started, 3), **fields)

    @property
    def _title(self) -> str:
        return f"{self._within} > {self._stage}" if self._whole else self._stage

    def _whose(self, message: str) -> str:
        """Side by side, parts must say who speaks."""
        return f"{self._title}: {message}" if self._whole else message

    def _tell(self, event: str, **fields: Any) -> None:
        within = {"within": self._within} if self._whole else {}
        self.events.write(event, **{"stage": self._stage, **within, **fields})

    def _new_bar(self) -> RichProgress:
        bar = RichProgress(
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
        bar.start()
        return bar

    def _tick(self) -> None:
        """A line of one's own; while parts are at work, theirs say enough."""
        if not self._parts_at_work:
            self._plain_line()

    def _draw(self) -> None:
        if self._bar and self._task is not None:
            self._bar.update(
                self._task, total=self._total, completed=self._done, counts=self._counts(), metrics=self._metric_text()
            )

    def _plain_line(self) -> None:
        with self._lock:  # the stage's thread counts on
            line = self._line()
        print(line, file=self._stream, flush=True)

    def _line(self) -> str:
        elapsed = time.monotonic() - self._started
        left = ""
        if self._total and self._counted_since and self._counted_since[1] < self._done < self._total:
            since, base = self._counted_since
            pace = (time.monotonic() - since) / (self._done - base)
            left = f", about {_clock(pace * (self._total - self._done))} left"
        percent = f" ({100 * self._done / self._total:.0f} %)" if self._total else ""
        metrics = f"  {self._metric_text()}" if self._metrics else ""
        return f"  {self._title}: {self._counts() or 'working'}{percent}, {_clock(elapsed)}{left}{metrics}"

    def _counts(self) -> str:
        if not self._unit:
            return ""
        total = f"/{_number(self._total)}" if self._total is not None else ""
        return f"{_number(self._done)}{total} {self._unit}"

    def _metric_text(self) -> str:
        return "  ".join(f"{name} {_number(value)}" for name, value in self._metrics.items())


def _console(stream: TextIO, *, live: bool) -> Console:
    return Console(file=stream, highlight=False, soft_wrap=True, force_terminal=live or None)


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
