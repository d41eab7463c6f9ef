"""The recipe that a laptop can run does run: a small copy of it, from images to a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LENS = str(Path(sys.executable).with_name("lens"))


def test_the_quickstart_recipe_trains_a_model_that_draws(tmp_path):
    overrides = {
        "stages.images.source.count": "40",
        "stages.model.batch.samples": "8",
        "stages.model.budget": "{steps: 3}",
        "stages.model.threads": "1",
    }
    sets = [part for path, value in overrides.items() for part in ("--set", f"{path}={value}")]
    command = [LENS, "run", str(ROOT / "recipes" / "quickstart.yaml"), *sets]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment)
    model = tmp_path / "runs" / "recipe-quickstart" / "model"
    manifest = json.loads((model / "manifest.json").read_text())
    assert manifest["stats"]["steps"] == 3
    assert manifest["stats"]["images"] == 24
    draw = [LENS, "generate", "a red circle", "--model", str(model), "-o", "a.png"]
    subprocess.run(draw, cwd=tmp_path, check=True, capture_output=True, env=environment)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    seen = [LENS, "train", "seen", "runs/recipe-quickstart", "model", "--step", "2", "--json"]
    lines = subprocess.run(seen, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 8
    assert {json.loads(line)["pack"] for line in lines} == {1}
