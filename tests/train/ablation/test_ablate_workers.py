"""Cells in processes of their own: the same numbers, one way out of an error, and nobody left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from lens_core.errors import LensError
from lens_train.ablation.rows import read_rows
from states import state_of
from train.ablation.tiny import TRAIN, ablation, start, timeless

SAVING = {**TRAIN, "checkpoints": {"every_s": 0.000001}}
LONG = ablation(workers=2, seeds=[0], equal={"steps": 4000}, cell=[SAVING])


def workers_of(pid):
    """The processes with cells below a process, by their ids."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            command = Path(f"/proc/{child}/cmdline").read_text()
        except OSError:
            continue
        if "spawn_main" in command:
            found.append(int(child))
    return found


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait_until(holds, process):
    deadline = time.monotonic() + 200
    while not holds() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()[-3000:]


def all_gone(workers):
    deadline = time.monotonic() + 60
    while not all(map(is_gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return all(map(is_gone, workers))


def metrics_of(folder, cell):
    return state_of(folder / "run" / ".state" / "captions.cells" / "running" / cell, "model") / "metrics.jsonl"


@contextlib.contextmanager
def two_at_work(folder):
    """A run whose two workers train for long, and their ids."""

    def written():
        files = [metrics_of(folder, cell) for cell in ("brief-0", "dense-0")]
        return [file.stat().st_mtime_ns if file.exists() else None for file in files]

    before = written()
    process = start(folder, LONG)
    try:
        wait_until(lambda: not {None, *before} & set(written()), process)
        workers = workers_of(process.pid)
        assert len(workers) == 2
        yield process, workers
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def saved(folder, cell):
    return (metrics_of(folder, cell).parent / "checkpoints" / "latest").exists()


def test_two_at_once_find_what_one_finds(ablate, tmp_path):
    tables = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        artifact, said = ablate(folder, ablation(workers=workers, seeds=[0], cell=[TRAIN]))
        assert "captions: dense, seed 0 (2 of 2) > model: 0/6 steps" in said
        assert "captions: brief, seed 0 (1 of 2) > model: 0/6 steps" in said
        assert said.count("done; 1 left") == 1
        tables.append(timeless(read_rows(artifact)))
    assert tables[0] == tables[1]


def test_a_worker_that_is_killed_and_a_signal(tmp_path):
    with two_at_work(tmp_path) as (process, workers):
        os.kill(workers[1], signal.SIGKILL)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2, said[-3000:]
        told = said.splitlines()[-1]
        assert told == "lens: dense, seed 0 (2 of 2): its process was killed by signal 9, for want of memory perhaps"
        assert all_gone(workers)
        assert saved(tmp_path, "brief-0")
    with two_at_work(tmp_path) as (process, workers):
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 3, said[-3000:]
        assert "captions: brief, seed 0 (1 of 2) > model: goes on from step " in said
        assert said.splitlines()[-1] == "lens: stopped; the same command goes on from here"
        assert all_gone(workers)
        assert saved(tmp_path, "brief-0")
        assert saved(tmp_path, "dense-0")


def test_nobody_works_on_for_a_parent_that_is_killed(tmp_path):
    with two_at_work(tmp_path) as (process, workers):
        process.kill()
        assert all_gone(workers)


def test_an_error_says_in_which_cell(ablate, tmp_path):
    arms = {"poor": {"set": {"equal.flops": 1}}, "dense": {}}
    stages = ablation(devices=["cpu"], arms=arms, seeds=[0], equal={"flops": 1e15}, cell=[SAVING])
    with pytest.raises(LensError, match=r"^poor, seed 0 \(1 of 2\): budget.flops: one step costs "):
        ablate(tmp_path, stages)


def test_a_device_that_is_not_there(ablate, tmp_path):
    with pytest.raises(LensError, match=r"^brief, seed 0 \(1 of 2\): devices: there is no cuda:63 on this machine$"):
        ablate(tmp_path, ablation(devices=["cuda:63"], seeds=[0], cell=[TRAIN]))
