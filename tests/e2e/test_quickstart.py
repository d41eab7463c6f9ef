"""The quickstart pipeline, shrunk: from nothing to a report, killed on the way, and then looked at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "examples" / "quickstart" / "pipeline.yaml")


@pytest.fixture(scope="module")
def shrunk():
    import yaml

    pipeline = yaml.safe_load(Path(QUICKSTART).read_text())
    sets = []
    for stage in pipeline["stages"]:
        name = stage["name"]
        if stage["type"] == "ingest":
            sets.append(f"{name}.source.count=48")
        if stage["type"] == "train":
            sets += [f"{name}.budget={{flops: 2.0e9}}", f"{name}.batch_size=8", f"{name}.threads=1"]
        if stage["type"] == "evaluate":
            sets += [f"{name}.evaluator.prompts_per_skill=3", f"{name}.steps=2"]
        if stage["type"] == "sample":
            sets += [f"{name}.steps=2"]
    return sets


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, shrunk):
    """The finished run, after one SIGKILL in the middle."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = [Path(sys.executable).with_name("lens"), "run", QUICKSTART, "--set", f"run={folder / 'run'}"]
    for text in shrunk:
        command += ["--set", text]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "run" / "stdout").write_text(done.stdout)
    return folder / "run"


def test_headline_is_one_line(run_folder):
    text = (run_folder / "stdout").read_text()
    assert len(text.strip().splitlines()) == 1
    assert "one training seed" in text


def test_summary_holds_what_the_table_needs(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert len(summary["arms"]) == 2
    flops = [arm["training_flops"] for arm in summary["arms"].values()]
    assert max(flops) / min(flops) < 1.1  # a tenth of the real budget's precision: here a step is a large share
    for arm in summary["arms"].values():
        assert {"steps", "training_flops", "text_tokens", "seconds", "accuracy"} <= arm.keys()
        for style in arm["accuracy"].values():
            for skill, cell in style.items():
                assert 0 <= cell["low"] <= cell["accuracy"] <= cell["high"] <= 1, skill


def test_report_is_one_self_contained_page(run_folder):
    page = (run_folder / "report.html").read_text()
    assert "Content-Security-Policy" in page
    assert "http-equiv" in page
    assert 'src="http' not in page
    assert "one training seed" in page


def test_everything_traces_back_to_the_images(run_folder, lens):
    picture = next((run_folder / "gallery-dense").rglob("*.png"))
    traced = lens("trace", str(picture))
    assert traced.returncode == 0, traced.stderr
    assert "images by ingest" in traced.stdout
    assert "prompt:" in traced.stdout


def test_generate_draws_the_same_picture_for_the_same_seed(run_folder, lens, tmp_path):
    arguments = ["a red circle", "--model", str(run_folder / "model-dense"), "--steps", "2", "--seed", "7"]
    for name in ("a.png", "b.png"):
        done = lens("generate", *arguments, "--rewriter", "scene-expander", "-o", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    traced = lens("trace", "a.png", cwd=tmp_path)
    assert "seed: 7" in traced.stdout
    other = lens("generate", *arguments[:-1], "8", "-o", "c.png", cwd=tmp_path)
    assert other.returncode == 0
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_generate_refuses_nonsense_in_one_line(run_folder, lens, tmp_path):
    for arguments, words in (
        (["x", "--model", str(tmp_path)], "no model folder"),
        (["x", "--model", str(run_folder / "model-dense"), "--size", "33x32"], "multiple of"),
        (["x", "--model", str(run_folder / "model-dense"), "--size", "big"], "WIDTHxHEIGHT"),
        (["x", "--model", str(run_folder / "model-dense"), "--rewriter", "nobody"], "there is no rewriter"),
    ):
        done = lens("generate", *arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert words in line
