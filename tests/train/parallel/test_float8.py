"""Training in float8: near to float32, in products of shapes that GPUs take, and clear about its library.

That library is no part of the development environment, since peft imports it where it finds it, and it is noisy:

    pip install torchao==0.18.0 --no-deps --target /tmp/torchao
    PYTHONPATH=/tmp/torchao python -m pytest tests/train/parallel/test_float8.py tests/train/optim/test_eight_bit.py
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from lens_core.errors import MissingExtraError
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.shard import shard
from lens_train.parallel.world import World
from train.parallel.nano import Run, denoiser, loss_of, pack, samples

ALONE = World(device=torch.device("cpu"))
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def gradients(**parallel):
    """The loss, the gradients, and the shapes (M, K), (K, N) of all float8 products."""
    run = Run(ALONE, **parallel)
    with torch.profiler.profile(record_shapes=True) as profile:
        loss = loss_of(run.model, *pack(samples(0, torch.float32)))
        loss.backward()
    products = [event.input_shapes[:2] for event in profile.events() if event.name == "aten::_scaled_mm"]
    return loss.item(), {name: one.grad for name, one in run.model.named_parameters()}, products


@needs_torchao
def test_loss_and_gradients_are_near_those_of_float32():
    loss, whole, none = gradients()
    near, eight, products = gradients(float8=True)
    assert not none
    # Eight layers have widths that fit, and in the backward pass two products each, but where nothing depends on one.
    assert 2 * 8 < len(products) <= 3 * 8
    assert loss != near == pytest.approx(loss, rel=1e-3)
    assert eight.keys() == whole.keys()
    for name, gradient in whole.items():
        if gradient is not None and gradient.any():
            assert torch.cosine_similarity(eight[name].flatten(), gradient.flatten(), dim=0) > 0.98, name


@needs_torchao
def test_selective_takes_no_product_again():
    """A product in float8 is one of ordinary matrices to what decides, whatever is within."""
    whole, selective, full = (
        len(gradients(float8=True, activation_checkpointing=policy)[2]) for policy in ("none", "selective", "full")
    )
    assert whole == selective < full


@needs_torchao
def test_products_have_the_shapes_that_gpus_take():
    batch, _ = pack(samples(0, torch.float32))
    assert len(batch.image) % 16 != 0
    _, _, products = gradients(float8=True)
    assert all(inner % 16 == 0 and columns % 16 == 0 for _, (inner, columns) in products)


@needs_torchao
def test_it_learns():
    losses = []
    run = Run(ALONE, float8=True)
    for _ in range(30):
        run.backward(0)
        run.optimizers.step()
        run.optimizers.zero_grad()
        with torch.no_grad():
            losses.append(loss_of(run.model, *pack(samples(0, torch.float32))).item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_missing_library_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(MissingExtraError, match=r"needs the library 'torchao'.*lens-train\[float8\]"):
        shard(denoiser(), ALONE, ParallelConfig(float8=True))
