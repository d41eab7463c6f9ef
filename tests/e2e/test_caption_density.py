"""The experiment on captions, shrunk: the same file, a few steps a training. It checks the machinery, not the claim."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = str(ROOT / "examples" / "caption-density" / "pipeline.yaml")
COUNTS = {"images": 48, "images-1k": 24, "images-4k": 32}


def steps_of(flops):
    """Three steps for the usual budget."""
    return round(float(flops) / 7.3e12)


@pytest.fixture(scope="module")
def shrunk():
    """`--set` for each stage: steps in place of FLOPs, and a few images."""
    sets = []
    for stage in yaml.safe_load(Path(PIPELINE).read_text())["stages"]:
        name = stage["name"]
        if stage["type"] == "ingest":
            sets.append(f"{name}.source.count={COUNTS[name]}")
        if stage["type"] != "ablate":
            continue
        sets += [
            f"{name}.equal={{steps: {steps_of(stage['equal']['flops'])}}}",
            f"{name}.seeds={[0, 1] if name == 'captions' else [0]}",
            f"{name}.workers=1",
            f"{name}.cell.model.batch={{samples: 4}}",
            f"{name}.cell.model.watch.evaluate.every=2",
            f"{name}.cell.model.watch.evaluate.evaluator.prompts_per_skill=1",
            f"{name}.cell.scores.evaluator.prompts_per_skill=2",
            f"{name}.cell.scores.steps=2",
            f"{name}.cell.gallery.steps=2",
        ]
        for arm, own in stage["arms"].items():
            changes = dict(own.get("set", {}))
            if flops := changes.pop("equal.flops", None):
                changes["equal.steps"] = steps_of(flops)
            sets.append(f"{name}.arms.{arm}.set={json.dumps(changes)}")
    return sets


def run(shrunk, folder, results):
    command = [str(Path(sys.executable).with_name("lens")), "run", PIPELINE, "--set", f"run={folder}"]
    for name in ("captions", "compute", "noise", "sizes", "data", "exploratory"):
        command += ["--set", f"{name}.results={results / name}"]
    for text in shrunk:
        command += ["--set", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shrunk):
    folder = tmp_path_factory.mktemp("caption-density")
    run(shrunk, folder / "run", folder / "results")
    return folder


def test_every_ablation_ends_in_the_report(finished):
    report = finished / "run" / "report"
    text = (report / "report.md").read_text()
    for arm in ("alt-text", "brief", "mixed", "dense", "wrong-40", "dense-9m", "brief-1k", "shuffled"):
        assert arm in text
    assert (report / "report.html").exists()
    for figure in (report / "figures").glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG")
    findings = json.loads((report / "tables" / "findings.json").read_text())
    assert findings


def test_a_fresh_run_folder_takes_the_results_of_another(finished, shrunk):
    """As after a sitting on another machine: nothing is trained again, and the tables are the same."""
    said = run(shrunk, finished / "again", finished / "results")
    assert "8 of 8 cells are finished" in said
    assert "> model" not in said
    tables = [(finished / name / "report" / "tables" / "accuracy.csv").read_bytes() for name in ("run", "again")]
    assert tables[0] == tables[1]
