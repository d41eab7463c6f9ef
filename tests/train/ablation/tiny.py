"""An ablation that runs in a moment: two arms, a model of one block, a few steps."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import yaml

IMAGES = {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 24}}
LAYERS = [
    {"name": style, "type": "caption", "source": "images", "captioner": {"type": "scene-graph", "style": style}}
    for style in ("brief", "dense")
]
TRAIN = {
    "name": "model",
    "type": "train",
    "source": "dense",
    "model": {"type": "lens", "preset": "nano", "num_layers": 1},
    "batch": {"samples": 4},
    "threads": 1,
    "watch": {"log_every": 1, "tensorboard": False},
}
SCORES = {
    "name": "scores",
    "type": "evaluate",
    "source": "model",
    "evaluator": {"type": "scenes", "prompts_per_skill": 2, "skills": ["single", "two"], "styles": ["brief", "dense"]},
    "steps": 2,
}
GALLERY = {"name": "gallery", "type": "sample", "source": "model", "prompts": ["a red circle"], "steps": 2}
ABLATE = {
    "name": "captions",
    "type": "ablate",
    "source": ["brief", "dense"],
    "cell": [TRAIN, SCORES, GALLERY],
    "arms": {"brief": {"style": "brief", "set": {"model.source": "brief"}}, "dense": {"style": "dense"}},
    "equal": {"steps": 6},
    "seeds": [0, 1],
}


def ablation(**changes):
    """The stages of a pipeline with the ablation as its last; its fields may differ."""
    return copy.deepcopy([IMAGES, *LAYERS, {**ABLATE, **changes}])


def start(folder, stages, *, run="run"):
    """`lens run` in a process of its own, on one thread."""
    (folder / "pipeline.yaml").write_text(yaml.safe_dump({"run": run, "stages": stages}, sort_keys=False))
    return subprocess.Popen(
        [Path(sys.executable).with_name("lens"), "run", "pipeline.yaml"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder, stages, *, run="run"):
    """Run to the end; returns what was said."""
    process = start(folder, stages, run=run)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    return said


def timeless(table):
    """The rows without what a clock says."""
    return [row for row in table.to_pylist() if row["metric"] != "seconds"]
