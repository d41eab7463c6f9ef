"""The recipes for one's own photos do run: in small, from a folder of photos and a checkpoint to pictures and a card.

What a recipe says of training stays as it is, precision and recomputation included. What it cannot bring is put in: a
small checkpoint with random weights, a few small photos, a captioning service on this machine.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from core.diffusion.packs import random_model
from lens_caption.testing.openai_server import FakeServer
from lens_core.cli.main import app
from lens_core.diffusion import load_model_folder
from lens_train.methods.adapters import COMFYUI_FILE, LORA_FILE

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SIZES = ((96, 64), (64, 96), (72, 72), (128, 64), (64, 64), (80, 100))


def lens(*arguments):
    """The command, in this process."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output[-3000:]


@pytest.fixture(scope="module")
def place(tmp_path_factory, lens_registry):
    """A checkpoint, and a folder of photos."""
    folder = tmp_path_factory.mktemp("recipes")
    random_model(folder / "base", lens_registry)
    (folder / "photos").mkdir()
    lots = np.random.default_rng(5)
    for number, size in enumerate(SIZES):
        rough = Image.fromarray(lots.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        rough.resize(size, Image.Resampling.BICUBIC).save(folder / "photos" / f"{number}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module", params=["finetune", "lora"])
def made(request, place):
    """The name of a recipe, and the model folder that it left."""
    with FakeServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "for the fake server")
        settings = {
            "run": place / request.param,
            "stages.images.source.url": place / "photos",
            "stages.dense.captioner.base_url": server.url,
            "stages.model.start": place / "base",
            "stages.model.image_size": "{bases: {64: 1}}",
            "stages.model.budget": "{steps: 3}",
            "stages.model.threads": 1,
            "stages.model.data.workers": 0,  # not eight processes for six photos
            "stages.model.watch": "{samples: {prompts: [a red circle, two blue squares, a dog], every: 2}}",
        }
        sets = [part for path, value in settings.items() for part in ("--set", f"{path}={value}")]
        lens("run", RECIPES / f"{request.param}.yaml", *sets)
    return request.param, place / request.param / "model"


def test_training_moves_the_checkpoint_or_an_adapter_beside_it(made, place):
    recipe, model = made
    stats = json.loads((model / "manifest.json").read_text())["stats"]
    packs = {"finetune": 8, "lora": 2}[recipe]
    assert (stats["steps"], stats["training_images"]) == (3, len(SIZES))
    assert stats["images"] == 3 * packs * 2
    before, after = (load_model_folder(str(folder)).transformer.state_dict() for folder in (place / "base", model))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    if recipe == "lora":
        assert all(name.startswith("transformer_blocks.") for name in moved)
        assert stats["parameters"] < sum(tensor.numel() for tensor in after.values())
        assert (model / LORA_FILE).exists()
        assert (model / COMFYUI_FILE).exists()
    else:
        assert {"img_in.weight", "proj_out.weight", "transformer_blocks.0.img_mlp.w1.weight"} <= moved
        assert not (model / LORA_FILE).exists()
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["loss"] > 0 for line in lines)


def test_the_card_shows_the_last_grid_and_says_where_the_model_comes_from(made, place):
    recipe, model = made
    card = (model / "README.md").read_text()
    start = {"finetune": "Every weight trained on from", "lora": "A lora on"}[recipe]
    assert f"{start} `{place / 'base'}`." in card
    assert "- captions `dense`, " in card
    assert "![Sample pictures](samples/0000003.png)" in card
    assert [file.name for file in sorted((model / "samples").iterdir())] == ["0000002.png", "0000003.png"]
    grid = Image.open(model / "samples" / "0000003.png")
    assert grid.size == (32, 32)  # four cells of what the checkpoint draws by default
    assert len(grid.getcolors(1024) or []) > 100


def test_the_model_draws(made, tmp_path):
    _, model = made
    lens("generate", "a dog on a beach", "--model", model, "--seed", 1, "-o", tmp_path / "a.png")
    assert Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).size == (16, 16)
