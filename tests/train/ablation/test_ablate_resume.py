"""An ablation that is killed or stopped in its second cell goes on, and finds what it would have found."""

from __future__ import annotations

import json
import signal
import time

from lens_core.storage.artifacts import load_artifact
from lens_train.ablation.rows import read_rows
from lens_train.loop.metrics import METRICS
from states import state_of
from train.ablation.tiny import SCORES, TRAIN, ablation, finish, start, timeless

STEPS = 40
SAVING = {**TRAIN, "checkpoints": {"every_s": 0.000001}}
STAGES = ablation(seeds=[0], equal={"steps": STEPS}, cell=[SAVING, SCORES])


def steps_of_second(folder):
    """The last step in the metrics of the second cell while it is trained."""
    cell = folder / "run" / ".state" / "captions.cells" / "running" / "dense-0"
    try:
        text = (state_of(cell, "model") / METRICS).read_text()
        lines = [line for line in text.splitlines(True) if line.endswith("\n")]
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


def interrupt(folder, at, number):
    """Start, and send a signal once the second cell has come to a step; the exit code, and what was said."""
    process = start(folder, STAGES)
    deadline = time.monotonic() + 200
    while steps_of_second(folder) < at and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert at <= steps_of_second(folder) < STEPS, said[-3000:]
    return process.returncode, said


def test_it_goes_on(ablate, tmp_path):
    code, said = interrupt(tmp_path, 5, signal.SIGTERM)
    assert code == 3, said[-3000:]
    told = said.splitlines()[-1]
    assert told.startswith("lens: dense, seed 0 (2 of 2): stopped at step ")
    assert told.endswith("; the same command goes on from here")
    code, _ = interrupt(tmp_path, 15, signal.SIGKILL)
    assert code == -signal.SIGKILL
    said = finish(tmp_path, STAGES)
    assert "1 of 2 cells are finished" in said
    assert "captions: dense, seed 0 (2 of 2) > model: goes on from step " in said
    (tmp_path / "undisturbed").mkdir()
    undisturbed, _ = ablate(tmp_path / "undisturbed", STAGES)
    assert timeless(read_rows(load_artifact(str(tmp_path / "run" / "captions")))) == timeless(read_rows(undisturbed))
    cells = tmp_path / "run" / ".state" / "captions.cells"
    assert [path.name for path in cells.iterdir()] == ["results"]
