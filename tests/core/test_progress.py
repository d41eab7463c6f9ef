"""What people and machines are told of a run: plain lines, a live bar, events."""

from __future__ import annotations

import io
import json
import re

import pytest

from lens_core.pipeline import progress as module
from lens_core.pipeline.progress import EventLog, Progress


@pytest.fixture
def fast_lines(monkeypatch):
    monkeypatch.setattr(module, "PLAIN_INTERVAL_S", 0.02)


def wait_for(stream, pattern):
    import time

    deadline = time.monotonic() + 10
    while not re.search(pattern, stream.getvalue()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert re.search(pattern, stream.getvalue()), stream.getvalue()


def test_plain_lines_go_on_even_if_nothing_moves(fast_lines):
    stream = io.StringIO()
    progress = Progress(stream=stream, live=False)
    progress.open("slow")
    progress.start(10, "images")
    wait_for(stream, r"(?s)slow: 0/10 images \(0 %\).*slow: 0/10 images \(0 %\)")
    progress.close("stage-done")
    told = stream.getvalue()
    assert "\x1b" not in told
    assert all(line.startswith("  slow: 0/10 images (0 %), ") for line in told.splitlines())


def test_a_second_count_begins_anew(fast_lines):
    stream = io.StringIO()
    progress = Progress(stream=stream, live=False)
    progress.open("train")
    progress.start(None, "images decoded")
    progress.update(20_000)
    progress.start(12.0, "TFLOP")
    progress.close("stage-done")
    assert "train: 0/12 TFLOP (0 %)" in stream.getvalue()
    assert "20,000/12" not in stream.getvalue()


def test_time_left_counts_only_what_this_process_did(fast_lines, monkeypatch):
    """A resumed run begins at 90 of 100: the ten minutes before are not its pace."""
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    progress = Progress(stream=stream, live=True)
    progress._started = 0.0
    progress.start(100, "steps")
    progress.update(90)
    clock[0] = 10.0
    progress.update(92)
    progress._plain_line()
    assert "92/100 steps (92 %), 10 s, about 40 s left" in stream.getvalue()


def test_a_live_bar_on_a_terminal():
    stream = io.StringIO()
    progress = Progress(stream=stream, live=True)
    progress.open("train [red]")
    progress.start(4, "steps")
    progress.update(2, loss=0.25)
    progress.note("a [bold]note[/bold] as it is")
    progress.close("stage-done")
    told = stream.getvalue()
    assert "2/4 steps" in told
    assert "loss 0.25" in told
    assert "a [bold]note[/bold] as it is" in told


def test_events_are_strict_json(tmp_path):
    progress = Progress(stream=io.StringIO(), live=False)
    progress.events = EventLog(tmp_path / "events.jsonl")
    progress.open("train")
    progress.start(2, "steps")
    progress.update(1, loss=float("nan"), step=1)
    progress.close("stage-failed")
    progress.events.close()

    def refuse(word):
        raise AssertionError(word)

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["stage-start", "progress", "stage-failed"]
    assert lines[1]["step"] == 1
    assert "loss" not in lines[1]
