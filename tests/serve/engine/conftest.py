"""The models of engines in the tests' own process."""

from __future__ import annotations

import pytest

from serve.engine.process import settings_of
from serve.models import tiny_lora


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny tensors gain nothing from more threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_loras(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    broken = folder / "broken.safetensors"
    broken.write_bytes(b"no weights")
    return {
        "ink": str(tiny_lora(folder / "ink.safetensors", seed=1)),
        "oil": str(tiny_lora(folder / "oil.safetensors", seed=2)),
        "dora": str(tiny_lora(folder / "dora.safetensors", seed=3, dora=True)),
        "broken": str(broken),
    }


@pytest.fixture(scope="session")
def tiny_settings(tiny_folder, tiny_loras):
    return settings_of(tiny_folder, loras=tiny_loras)


@pytest.fixture(scope="session")
def tiny_models(tiny_settings):
    from serve.engine.bench import load

    return load(tiny_settings)
