"""The reference tensors, and one thread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.diffusion.packs import random_model
from lens_core.diffusion import LensTransformer2DModel

LENS_TINY = Path(__file__).parents[2] / "goldens" / "lens-tiny"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny tensors gain nothing from more threads, and the order of a sum is fixed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cases():
    """What the reference code computed on a tiny random model."""
    return load_file(LENS_TINY / "cases.safetensors")


@pytest.fixture(scope="session")
def golden_config():
    return json.loads((LENS_TINY / "transformer_config.json").read_text())


@pytest.fixture(scope="session")
def golden_weights():
    return load_file(LENS_TINY / "transformer.safetensors")


@pytest.fixture
def golden_model(golden_config, golden_weights):
    """The tiny random model; a test may change it."""
    model = LensTransformer2DModel(**golden_config)
    model.load_state_dict(golden_weights, strict=True)
    return model.eval()


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory, lens_registry):
    """A tiny model that draws something, and the folder that it was saved in."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return random_model(folder, lens_registry), folder
