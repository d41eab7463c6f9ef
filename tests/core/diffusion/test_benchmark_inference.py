"""The benchmark's padded rival computes the same pictures: otherwise its ratio would mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "options",
    [
        ["--guidance", "5", "1"],
        ["--guidance", "3", "--table", "--captions", "0-9", "--size", "24x40"],
        ["--guidance", "3", "--dtype", "bfloat16"],
    ],
    ids=" ".join,
)
def test_both_sides_end_alike(tmp_path, options):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "inference.py"),
        "--batch",
        "3",
        "--repeats",
        "1",
        "--threads",
        "1",
    ]
    fast = ["--steps", "2", "--size", "32x32", "--captions", "1-20", *options, "--out", str(tmp_path / "result.json")]
    done = subprocess.run([*command, *fast], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    for measured in result["guidance"]:
        assert measured["relative_difference"] < (5e-2 if "bfloat16" in options else 1e-5)
        assert measured["ratio_by_flops"] > 1
        assert f"guidance {measured['guidance']:g}: {measured['ratio']:.2f} times" in done.stdout
    assert result["stages"].keys() == {"denoise", "decode", "png"}
