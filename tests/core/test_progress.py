"""What people and machines are told of a run: plain lines, a live bar, events."""

from __future__ import annotations

import io
import json
import re
import threading
import time

import pytest

from lens_core.pipeline import progress as module
from lens_core.pipeline.progress import EventLog, Progress


@pytest.fixture
def fast_lines(monkeypatch):
    monkeypatch.setattr(module, "PLAIN_INTERVAL_S", 0.02)


def wait_for(stream, pattern):
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


def test_parts_say_where_they_are(fast_lines, tmp_path):
    stream = io.StringIO()
    progress = Progress(stream=stream, live=False)
    progress.events = EventLog(tmp_path / "events.jsonl")
    progress.open("captions")
    progress.start(12, "cells")
    part = progress.part("dense, seed 1 (5 of 12)")
    part.heading("[1/2] model: Train a model.", stage="model")
    part.open("model")
    part.start(100, "steps")
    part.update(40, loss=0.5)
    part.note("goes on from step 3")
    wait_for(stream, r"  captions: dense, seed 1 \(5 of 12\) > model: 40/100 steps \(40 %\), .*loss 0.5")
    part.close("stage-done")
    part.heading("  done in 3.0 s", stage="model")
    progress.close("stage-done")
    progress.events.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("  captions: 0/12 cells")
    assert "captions: dense, seed 1 (5 of 12) > [1/2] model: Train a model." in lines
    assert "  captions: dense, seed 1 (5 of 12) > model: goes on from step 3" in lines
    assert "captions: dense, seed 1 (5 of 12) > done in 3.0 s" in lines
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    told = [(event["event"], event["stage"], event.get("within")) for event in events]
    within = "captions: dense, seed 1 (5 of 12)"
    assert told == [
        ("stage-start", "captions", None),
        ("run", "model", within),
        ("stage-start", "model", within),
        ("progress", "model", within),
        ("note", "model", within),
        ("stage-done", "model", within),
        ("run", "model", within),
        ("stage-done", "captions", None),
    ]


def test_the_whole_is_silent_while_parts_speak(fast_lines):
    stream = io.StringIO()
    progress = Progress(stream=stream, live=False)
    progress.open("captions")
    part = progress.part("one")
    part.open("model")
    stream.seek(0)
    stream.truncate()
    wait_for(stream, r"(?s)(> model: working.*){5}")
    assert not re.search(r"^  captions: working", stream.getvalue(), re.MULTILINE)
    part.close("stage-done")
    wait_for(stream, r"(?m)^  captions: working")
    progress.close("stage-done")


def test_parts_stop_with_the_whole():
    progress = Progress(stream=io.StringIO(), live=False)
    part = progress.part("one")
    assert not part.stop_asked
    progress.stop_asked = True
    assert part.stop_asked
    other = Progress(stream=io.StringIO(), live=False)
    other.part("one").stop_asked = True
    assert not other.stop_asked


def test_parts_side_by_side_share_a_live_display():
    stream = io.StringIO()
    progress = Progress(stream=stream, live=True)
    progress.open("captions")
    progress.start(2, "cells")
    parts = [progress.part(name) for name in ("one", "two")]
    for part in parts:
        part.open("model")
        part.start(10, "steps")
        part.update(5)
    wait_for(stream, "captions: two > model")
    parts[0].close("stage-done")
    parts[1].update(7)
    wait_for(stream, "7/10 steps")
    parts[1].close("stage-done")
    progress.update(2)
    progress.close("stage-done")
    told = stream.getvalue()
    for words in ("captions: one > model", "captions: two > model", "7/10 steps", "2/2 cells"):
        assert words in told, words


def test_a_number_that_comes_while_a_line_is_written(fast_lines):
    class Slow:
        """Takes a while to be written out."""

        def __str__(self):
            writing.set()
            time.sleep(0.05)
            return "slow"

    writing, stream = threading.Event(), io.StringIO()
    progress = Progress(stream=stream, live=False)
    progress.open("train")
    progress.start(10, "steps")
    progress.update(1, loss=Slow())
    for number in range(3):
        writing.clear()
        assert writing.wait(10), "no line is written any more"
        progress.update(2, **{f"more{number}": 1})
    wait_for(stream, r"loss slow  more0 1  more1 1  more2 1")
    progress.close("stage-done")
