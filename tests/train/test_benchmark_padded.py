"""The benchmark beside a padded loop: both sides compute the same, the padded one more of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "train_padded.py"


def test_both_sides_compute_the_same(tmp_path):
    report = tmp_path / "report.json"
    options = ["--mix", "256", "--samples", "16", "--layers", "1", "--rounds", "1", "--threads", "1", "--out", report]
    done = subprocess.run([sys.executable, BENCHMARK, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(report.read_text())
    assert told["difference"] < 1e-5
    assert told["flops_ratio"] > 1.5
    assert told["flops_ratio"] == pytest.approx(told["padded"]["gflop_per_image"] / told["lens"]["gflop_per_image"])
    assert told["ratio"] == pytest.approx(told["lens"]["images_per_s"] / told["padded"]["images_per_s"])
    assert f"{told['flops_ratio']:.2f}x by FLOPs alone" in done.stdout
