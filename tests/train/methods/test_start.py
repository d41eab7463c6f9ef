"""What training goes on from: a model folder of ours or in the released layout, and folders that are none."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from core.diffusion.packs import random_model
from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion import load_model_folder
from lens_core.errors import ArtifactError, ConfigError
from lens_train.methods.start import load_start


@pytest.fixture(scope="module")
def saved(tmp_path_factory, lens_registry):
    folder = tmp_path_factory.mktemp("start") / "model"
    random_model(folder, lens_registry)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def refused(url, error, **options):
    with pytest.raises(error) as caught:
        load_start(str(url), **options)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


def test_ready_to_train(model, lens_registry):
    start = load_start(str(model), registry=lens_registry)
    parameters = list(start.transformer.parameters())
    assert start.transformer.training
    assert start.text_encoder.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in parameters)
    as_drawn = load_model_folder(str(model)).transformer.state_dict()
    assert all(torch.equal(tensor, as_drawn[name]) for name, tensor in start.transformer.state_dict().items())
    assert start.lens == json.loads((model / "lens.json").read_text())
    assert (start.prediction.type, start.image_size) == ("velocity", (16, 16))


def test_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is no model folder (it has no lens.json)" in refused(tmp_path / "empty", ArtifactError)


def test_a_model_of_another_architecture(model):
    """lens.json and the weights disagree: the message names the first tensor that does not fit."""
    lens = json.loads((model / "lens.json").read_text())
    lens["model"]["num_attention_heads"] = 3
    (model / "lens.json").write_text(json.dumps(lens))
    message = refused(model, ArtifactError)
    assert "does not fit its config: 'img_in.bias' has shape (32,), not (48,) (and" in message
    assert str(model / "transformer") in message


def test_another_prediction(model):
    message = refused(model, ConfigError, prediction=PredictionConfig(type="x"))
    assert message.startswith("objective.prediction is {'type': 'x'")
    assert f"{model} was trained with {{'type': 'velocity'" in message
    assert load_start(str(model), prediction=PredictionConfig(type="velocity")).prediction.type == "velocity"


def test_no_text_encoder(model):
    lens = json.loads((model / "lens.json").read_text())
    (model / "lens.json").write_text(json.dumps(lens | {"text_encoder": None}))
    assert "has no text encoder that can be used" in refused(model, ConfigError)
