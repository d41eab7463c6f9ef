"""Processes that read ahead for a run: a signal to all of them saves the state, and they end with the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PIPELINE = """\
run: run
seed: 3
stages:
  - {name: images, type: ingest, source: {type: scenes, count: 24}}
  - {name: dense, type: caption, source: images, captioner: {type: scene-graph, style: dense}}
  - name: model
    type: train
    source: dense
    model: {type: lens, preset: nano, num_layers: 1}
    budget: {steps: 400}
    batch: {samples: 4}
    data: {workers: 2, memory_gb: 0}
    watch: {log_every: 1}
"""


def steps_so_far(folder):
    metrics = [file for file in folder.glob("run/.state/**/metrics.jsonl") if file.read_bytes().endswith(b"\n")]
    return json.loads(metrics[0].read_text().splitlines()[-1])["step"] if metrics else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_the_state(tmp_path, number):
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    process = subprocess.Popen(
        [Path(sys.executable).with_name("lens"), "run", "pipeline.yaml"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while steps_so_far(tmp_path) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said[-3000:]
    assert said.splitlines()[-1].startswith("lens: stopped at step ")
    assert list(tmp_path.glob("run/.state/**/checkpoints/latest"))
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(process.pid, 0)
