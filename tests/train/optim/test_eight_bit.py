"""AdamW in 8 bits: what is said without its library, and what it does with it."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from lens_core.errors import MissingExtraError
from lens_train.checkpoint.state import TrainingState
from lens_train.checkpoint.store import CheckpointStore
from lens_train.optim.build import Optimizers
from lens_train.optim.config import OptimizerConfig
from lens_train.parallel.world import World


def test_the_missing_library_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(MissingExtraError, match=r"needs the library 'torchao'.*lens-train\[eight-bit\]"):
        Optimizers(OptimizerConfig(type="adamw-8bit"), [torch.nn.Linear(2, 2)])


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.filterwarnings("ignore")
def test_learns_as_adamw_does_and_goes_on_exactly(tmp_path):
    def run(kind):
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 128)
        return model, Optimizers(OptimizerConfig(type=kind, lr=0.01), [model])

    def steps(model, optimizers, first, last):
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(8, 64, generator=generator)
            loss = (model(x) - x.sum(-1, keepdim=True)).square().mean()
            loss.backward()
            optimizers.set_factor(1 / (1 + step))
            optimizers.step()
            optimizers.zero_grad()
        return loss.item()

    eight, full = run("adamw-8bit"), run("adamw")
    assert steps(*eight, 0, 20) == pytest.approx(steps(*full, 0, 20), rel=0.02)

    world = World(device=torch.device("cpu"))
    store = CheckpointStore(tmp_path, world)
    store.save(20, TrainingState({"model": eight[0]}, eight[1].parts), {})
    store.wait()
    again = run("adamw-8bit")
    store.load_latest(TrainingState({"model": again[0]}, again[1].parts))
    assert steps(*again, 20, 25) == steps(*eight, 20, 25)
    assert torch.equal(again[0].weight, eight[0].weight)
