"""From captions to `lens generate` in one pipeline: a checkpoint is fine-tuned as a whole, and by adapters.

The checkpoint is a folder as diffusers lays it out, with random weights; adapters go on it, and on the fine-tune.
"""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from core.diffusion.packs import random_model
from lens_core.cli.main import app
from lens_core.diffusion import load_model_folder
from lens_core.errors import StorageError
from lens_train.methods.adapters import COMFYUI_FILE, LORA_FILE

STAGES = """\
run: run
seed: 3
stages:
  - {name: images, type: ingest, source: {type: scenes, count: 16}}
  - {name: dense, type: caption, source: images, captioner: {type: scene-graph, style: dense}}
"""
TRAIN = """\
  - name: NAME
    type: train
    image_size: 16
    budget: {steps: 3}
    batch: {samples: 4}
    optimizer: {type: adamw, lr: 0.03, warmup_steps: 0}
    ema: 0.5
    threads: 1
"""
ARMS = {
    "tuned": "    source: dense\n    start: models/base\n",
    "lora": "    source: dense\n    start: models/base\n    method: {type: lora, rank: 2}\n",
    "dora": "    source: [dense, tuned]\n    method: {type: lora, kind: dora, rank: 2}\n",
    "lokr": "    source: dense\n    start: models/base\n    method: {type: lora, kind: lokr, rank: 2, alpha: 4}\n",
}
PIPELINE = STAGES + "".join(TRAIN.replace("NAME", name) + arm for name, arm in ARMS.items())
IDLE = tuple(
    f"transformer_blocks.1.{part}"
    for part in ("txt_mlp", "txt_norm2", "txt_mod", "attn.to_add_out", "attn.norm_added_q")
)
"""Parts of the last block that no output depends on."""

BASE = "project/models/base"
BASES = {"lora": BASE, "dora": "run/tuned", "lokr": BASE}


def lens(*arguments):
    """The command, in this process: a dozen pictures are drawn."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, lens_registry):
    """Where the command is given; the pipeline and what it starts from lie in a project below."""
    folder = tmp_path_factory.mktemp("finetune")
    random_model(folder / BASE, lens_registry)
    (folder / "project" / "pipeline.yaml").write_text(PIPELINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lens("run", "project/pipeline.yaml")
        yield folder


@pytest.fixture(scope="module")
def draw(folder):
    """A picture by `lens generate`, each drawn once."""
    drawn = {}

    def picture(model, *lora):
        if (model, *lora) not in drawn:
            out = folder / f"{len(drawn)}.png"
            options = [part for file in lora for part in ("--lora", folder / file)]
            lens("generate", "a red circle", "--model", folder / model, *options, "--seed", 5, "-o", out)
            drawn[model, *lora] = np.asarray(Image.open(io.BytesIO(out.read_bytes()))).astype(int)
        return drawn[model, *lora]

    return picture


def weights(folder):
    return load_model_folder(str(folder)).transformer.state_dict()


def test_the_fine_tune_is_a_model_that_draws_otherwise(folder, draw):
    before, after = weights(folder / BASE), weights(folder / "run/tuned")
    assert before.keys() == after.keys()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert all(name.startswith(IDLE) for name in still), still
    picture = draw("run/tuned")
    assert picture.shape == (16, 16, 3)
    assert abs(picture - draw(BASE)).max() > 4


def test_the_fine_tune_keeps_what_its_start_says(folder):
    base, tuned = (json.loads((folder / name / "lens.json").read_text()) for name in (BASE, "run/tuned"))
    for name in ("model", "autoencoder", "prediction", "sampler", "guidance", "image_size"):
        assert tuned[name] == base[name], name


@pytest.mark.parametrize("kind", BASES)
def test_an_adapter_beside_its_base_draws_what_the_merged_model_draws(folder, draw, kind):
    base = BASES[kind]
    merged = draw(f"run/{kind}")
    assert abs(merged - draw(base)).max() > 4
    assert abs(merged - draw(base, f"run/{kind}/{LORA_FILE}")).max() <= 1


def test_the_file_for_comfyui_is_the_same_adapter(folder, draw):
    assert abs(draw("run/lora") - draw(BASE, f"run/lora/{COMFYUI_FILE}")).max() <= 1
    assert not (folder / "run" / "dora" / COMFYUI_FILE).exists()


@pytest.mark.parametrize("kind", BASES)
def test_an_adapter_moves_the_denoiser_alone(folder, kind):
    base, merged = folder / BASES[kind], folder / "run" / kind
    for file in ("text_encoder/model.safetensors", "text_encoder/tokenizer.json"):
        assert (merged / file).read_bytes() == (base / file).read_bytes(), file
    before, after = weights(base), weights(merged)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("transformer_blocks.") for name in moved)
    stats = json.loads((merged / "manifest.json").read_text())["stats"]
    assert 0 < stats["parameters"] < sum(tensor.numel() for tensor in before.values()) / 2


def test_an_adapter_of_a_fine_tune_traces_back_to_it(folder):
    parents = json.loads((folder / "run" / "dora" / "manifest.json").read_text())["parents"]
    assert [parent["name"] for parent in parents] == ["dense", "tuned"]


START = """\
run: again
seed: 3
stages:
  - {name: images, type: ingest, source: {type: scenes, count: 16}}
  - {name: dense, type: caption, source: images, captioner: {type: scene-graph, style: dense}}
  - name: model
    type: train
    source: dense
    start: START
    image_size: 16
    budget: {steps: 1}
    batch: {samples: 4}
    threads: 1
"""


@pytest.fixture
def run_from(folder, tmp_path, monkeypatch):
    """Train from a model; whether it was trained, or found done already."""
    monkeypatch.chdir(tmp_path)

    def run(start):
        (tmp_path / "pipeline.yaml").write_text(START.replace("START", str(start)))
        said = CliRunner().invoke(app, ["run", "pipeline.yaml"])
        assert said.exit_code == 0, said.output[-3000:]
        return "model: done already" not in said.output

    return run


def test_another_model_in_the_place_of_the_start_is_noticed(folder, tmp_path, lens_registry, run_from):
    start = tmp_path / "models" / "base"
    shutil.copytree(folder / BASE, start)
    assert run_from(start)
    assert not run_from(start)
    shutil.rmtree(start)
    random_model(start, lens_registry, seed=1)
    assert run_from(start)


def test_a_model_of_lens_in_the_start_is_a_parent(folder, tmp_path, run_from):
    run_from(folder / "run" / "tuned")
    *_, tuned = json.loads((tmp_path / "again" / "model" / "lens.json").read_text())["parents"]
    assert tuned["hash"] == json.loads((folder / "run" / "tuned" / "manifest.json").read_text())["hash"]


def test_a_start_that_is_gone_costs_nothing(folder, tmp_path, run_from):
    start = tmp_path / "base"
    shutil.copytree(folder / BASE, start)
    assert run_from(start)
    shutil.rmtree(start)
    refused = CliRunner().invoke(app, ["run", "pipeline.yaml"]).exception
    assert isinstance(refused, StorageError)
    assert str(refused) == f"{start} does not exist"
    assert (tmp_path / "again" / "model" / "manifest.json").exists()
