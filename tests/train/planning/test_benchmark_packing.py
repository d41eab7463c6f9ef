"""`benchmarks/packing.py` and `stage_start.py`: the goals that they measure are reached, on fewer samples."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[3] / "benchmarks" / "packing.py"
STARTS = ("first_start", "next_start")


def load(file):
    spec = importlib.util.spec_from_file_location("benchmark_packing", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


packing = load(FILE)


def test_waste_and_spread_are_within_the_goals(tmp_path):
    rows = packing.compare(packing.mixed(tmp_path / "mix", 20_000), steps=150)
    assert len(packing.SIZES) == len(set(packing.SIZES)) == 27
    buckets = rows.pop("buckets, padded")
    assert buckets["padded tokens %"] > 8
    for name, row in rows.items():
        assert row["padded tokens %"] < (3 if "fixed" in name else 1e-9)
        assert row["FLOPs wasted %"] < (3 if "fixed" in name else 2)
        assert row["FLOPs spread %"] < 3 < buckets["FLOPs spread %"]
        assert row["FLOPs spread p95 %"] < 8 < buckets["FLOPs spread p95 %"]


@pytest.mark.parametrize("count", [1_000_000, pytest.param(10_000_000, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_samples(tmp_path, count):
    options = ["--samples", "2000", "--steps", "5", "--seeks", "5", "--large", str(count)]
    report = tmp_path / "report.json"
    command = [sys.executable, FILE, *options, "--folder", tmp_path, "--out", report]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(report.read_text())["planning"]
    assert found["seek: packs per epoch"] == pytest.approx(count * 2619 / 25_600, rel=0.03)
    assert 10 < found["build: anonymous MB"] < 100
    assert 10 < found["seek: anonymous MB"] < 100
    assert list(tmp_path.iterdir()) == [report]


def test_a_stage_starts_without_its_captions_in_memory(tmp_path):
    report = tmp_path / "report.json"
    options = ["--images", "200000", "--folder", tmp_path, "--out", report]
    subprocess.run([sys.executable, FILE.with_name("stage_start.py"), *options], check=True, capture_output=True)
    found = json.loads(report.read_text())
    taken = [found[f"{start}: anonymous MB"] - found[f"{start}: of it Python and imports"] for start in STARTS]
    assert 10 < taken[0] < 180  # the captions alone are 100 MB; with their keys, as Python's strings, more than 200
    assert taken[1] < 2
    assert list(tmp_path.iterdir()) == [report]
