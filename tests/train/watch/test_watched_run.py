"""A run that is watched in every way, by one rank and by two: the same numbers and pictures, and the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.text_to_image import Request, generate
from lens_core.errors import ConfigError, LensError
from lens_train.watch.samples import grid_of

PIPELINE = """\
run: run
seed: 3
stages:
  - {name: images, type: ingest, source: {type: scenes, count: 24}}
  - {name: dense, type: caption, source: images, captioner: {type: scene-graph, style: dense}}
  - name: model
    type: train
    source: dense
    model: {type: lens, preset: nano, num_layers: 2}
    sampler: {type: flow-euler, steps: 2}
    budget: {steps: 6}
    batch: {samples: 4, packs_per_step: 2}
    threads: 1
    watch:
      log_every: 100
      validation: {share: 0.25, every: 4, times: 2}
      samples: {prompts: [a red circle, a blue square, a green triangle], every: 4}
      evaluate: {evaluator: {type: scenes, prompts_per_skill: 2, skills: [single, two], styles: [dense]}, every: 4}
"""


def stages(**watch):
    """The pipeline's stages, with more settings of what is watched."""
    made = yaml.safe_load(PIPELINE)["stages"]
    made[-1]["watch"] |= watch
    return made


@pytest.fixture(scope="module")
def runs(run_stages, tmp_path_factory):
    folders = {ranks: tmp_path_factory.mktemp(f"ranks-{ranks}") for ranks in (1, 2)}
    run_stages(folders[1], stages())
    (folders[2] / "pipeline.yaml").write_text(PIPELINE)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lens_train", "pipeline.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher],
        cwd=folders[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {ranks: folder / "run" / "model" for ranks, folder in folders.items()}


def seen(model):
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 6]
    named = ("val_loss", "score_", "loss")
    return [{name: value for name, value in line.items() if name.startswith(named)} for line in lines]


def grids(model):
    return {file.name: np.asarray(Image.open(file)) for file in sorted((model / "samples").iterdir())}


def test_two_ranks_see_what_one_sees(runs):
    one, two = seen(runs[1]), seen(runs[2])
    assert set(one[1]) >= {"val_loss", "val_loss_t1", "val_loss_t2", "score_single", "score_two"}
    for mine, other in zip(one, two, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
    pictures, others = grids(runs[1]), grids(runs[2])
    assert list(pictures) == list(others) == ["0000004.png", "0000006.png"]
    for name, picture in pictures.items():
        assert picture.shape == (64, 64, 3)
        assert np.abs(picture.astype(int) - others[name]).max() <= 2


def test_the_last_grid_is_what_the_finished_model_draws(runs, lens_registry):
    model = load_model_folder(str(runs[1]), registry=lens_registry)
    prompts = ["a red circle", "a blue square", "a green triangle"]
    drawn = generate(model, [Request(prompt=p, height=32, width=32, seed=3, index=i) for i, p in enumerate(prompts)])
    assert np.abs(grid_of(drawn).astype(int) - grids(runs[1])["0000006.png"]).max() <= 1
    assert "![Sample pictures](samples/0000006.png)" in (runs[1] / "README.md").read_text()


def asking_for(at_least):
    return stages(evaluate=yaml.safe_load(PIPELINE)["stages"][-1]["watch"]["evaluate"] | {"at_least": at_least})


def test_scores_below_what_is_asked_fail_the_run_with_one_line(run_stages, tmp_path):
    with pytest.raises(LensError) as caught:
        run_stages(tmp_path, asking_for({"single": 1, "two": 0}))
    assert caught.value.exit_code == 2
    assert str(caught.value) == "scores fall short of watch.evaluate.at_least at the end: single 0 of 1"
    assert not (tmp_path / "run" / "model" / "manifest.json").exists()


def test_a_score_that_the_evaluator_does_not_give(run_stages, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_stages(tmp_path, asking_for({"double": 1}))
    assert str(caught.value) == "watch.evaluate.at_least: the evaluator has no skill 'double'; it has single, two"


def test_a_grid_is_filled_row_by_row():
    cells = [np.full((2, 3, 3), shade, dtype=np.uint8) for shade in (10, 20, 30)]
    grid = grid_of(cells)
    assert grid.shape == (4, 6, 3)
    assert [int(grid[y, x, 0]) for y, x in ((0, 0), (1, 5), (3, 2), (3, 3))] == [10, 20, 30, 255]
    assert np.array_equal(grid_of(cells[:1]), cells[0])
