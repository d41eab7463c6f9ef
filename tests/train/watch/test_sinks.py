"""Trackers: the calls that they get, and what is said where they are missing; TensorBoard's files, read by itself."""

from __future__ import annotations

import json
import math
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lens_core.errors import MissingExtraError
from lens_train.loop.budget import Budget
from lens_train.watch.config import WatchConfig
from lens_train.watch.sinks import TensorBoard

STAND_IN = """\
import json

def _tell(*call):
    with open({log!r}, "a") as file:
        file.write(json.dumps(call) + "\\n")

def init(**options):
    _tell("init", options)

def log(values, step):
    _tell("log", values, step)

def finish():
    _tell("finish")
"""


@pytest.fixture(params=["wandb", "trackio"])
def library(request, tmp_path, monkeypatch):
    """A stand-in of that name, which writes to `calls.jsonl`."""
    (tmp_path / "modules").mkdir()
    file = tmp_path / "modules" / f"{request.param}.py"
    file.write_text(STAND_IN.format(log=str(tmp_path / "calls.jsonl")))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield request.param
    sys.modules.pop(request.param, None)


def test_a_tracker_gets_every_line_and_goes_on_as_the_same_run(library, new_trainer, progress, tmp_path):
    watch = WatchConfig(log_every=1, **{library: "pictures"})
    for steps in (2, 1):
        new_trainer(budget=Budget(steps=steps), watch=watch, settings={"ema": 0.9}).run(progress)
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert [call[0] for call in calls] == ["init", "log", "log", "finish", "init", "log", "finish"]
    options = calls[0][1]
    assert (options["project"], options["resume"]) == ("pictures", "allow")
    assert options["name"].startswith("state-")
    assert options["config"] == {"ema": 0.9}
    assert set(options) == {"project", "name", "resume", "config"} | ({"id"} if library == "wandb" else set())
    assert calls[4][1] == options
    lines = [json.loads(line) for line in (tmp_path / "state" / "metrics.jsonl").read_text().splitlines()]
    assert calls[5][1:] == [{name: value for name, value in lines[0].items() if name != "step"}, 1]


@pytest.mark.parametrize("missing", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed(missing, new_trainer, progress):
    with pytest.raises(MissingExtraError) as caught:
        new_trainer(budget=Budget(steps=1), watch=WatchConfig(**{missing: "pictures"})).run(progress)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"watch.{missing} needs the library '{missing}', which is not installed; install it with: ")
    assert line.endswith(f"lens-train[{missing}]'")


def test_tensorboard_reads_what_was_written_and_forgets_what_is_written_again(tmp_path):
    """A run that goes on from step 2 writes step 3 anew; what is not finite is left out."""
    for first, rows in ((0, [(1, 0.5), (2, 0.25), (3, 0.75)]), (2, [(3, 0.125), (4, math.nan)])):
        sink = TensorBoard(tmp_path, step=first)
        for step, loss in rows:
            sink.write(step, {"loss": loss, "lr": 0.5 * step})
        found = read_back(tmp_path)  # before it is closed: what `write` took is on the disk
        sink.close()
    assert found["loss"] == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert found["lr"] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert len(list((tmp_path / "tb").iterdir())) == 2


def read_back(folder):
    """The curves as TensorBoard shows them."""
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
