"""Adapters: each takes a gradient and changes nothing at first; merged is unmerged; the files go round."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import nn

from core.diffusion.packs import pack, random_lens, random_samples
from lens_core.diffusion.weights import load_lora
from lens_core.errors import ConfigError
from lens_train.methods.adapters import (
    COMFYUI_FILE,
    LORA_FILE,
    adapter_parameters,
    add_adapters,
    finish_adapters,
)
from lens_train.methods.config import FullMethod, LoraMethod, MethodConfig

TESTS = Path(__file__).parents[2]
KINDS = ("lora", "dora", "lokr")


def adapted(kind="lora", *, disturbed=True, dtype=torch.float64, **options):
    method = LoraMethod(kind=kind, **{"rank": 2, "alpha": 3, **options})
    model = random_lens(dtype=dtype)
    add_adapters(model, method, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values() if disturbed else ():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model, method


def velocity(model, dtype=torch.float64):
    return model.forward_ragged(pack(random_samples(dtype=dtype)))


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing(kind):
    model, _ = adapted(kind, disturbed=False)
    torch.testing.assert_close(velocity(model), velocity(random_lens()), rtol=1e-12, atol=1e-12)
    assert adapter_parameters(model)
    assert not adapter_parameters(random_lens())


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_takes_a_gradient_and_nothing_else_does(kind):
    model, _ = adapted(kind)
    velocity(model).square().sum().backward()
    adapters = adapter_parameters(model)
    assert all(parameter.grad.abs().max() > 0 for parameter in adapters.values())
    others = {name: parameter for name, parameter in model.named_parameters() if name not in adapters}
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in others.values())
    assert {name.replace(".base_layer", "") for name in others} == {
        name for name, _ in random_lens().named_parameters()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn(kind):
    """From where they begin: a part that starts at zero must not keep the others there."""
    model, _ = adapted(kind, disturbed=False)
    goal = velocity(random_lens(seed=5)).detach()
    optimizer = torch.optim.AdamW(adapter_parameters(model).values(), lr=0.02)
    losses, before = [], {name: p.detach().clone() for name, p in adapter_parameters(model).items()}
    for _ in range(12):
        loss = (velocity(model) - goal).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    assert all((p - before[name]).abs().max() > 0 for name, p in adapter_parameters(model).items())


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_unmerged_and_the_files_go_round(tmp_path, kind):
    model, method = adapted(kind)
    with torch.device("meta"):
        fresh = random_lens()
    plain = finish_adapters(fresh, method, copy.deepcopy(model.state_dict()), tmp_path)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in random_lens().named_parameters()]
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert (velocity(model) - velocity(random_lens())).abs().max() > 1e-3
    torch.testing.assert_close(velocity(plain), velocity(model), rtol=1e-9, atol=1e-9)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ([LORA_FILE] if kind == "dora" else sorted([COMFYUI_FILE, LORA_FILE]))
    for file in files:
        again = random_lens()
        load_lora(again, tmp_path / file)
        torch.testing.assert_close(velocity(again), velocity(model), rtol=1e-9, atol=1e-9)
        prefix = "diffusion_model." if file == COMFYUI_FILE else "transformer."
        assert all(key.startswith(prefix) for key in load_file(tmp_path / file))


def test_what_cannot_reach_the_output_gets_none():
    model, _ = adapted()
    reached = {name.rpartition(".lora_")[0] for name in adapter_parameters(model)}
    linears = {f"transformer_blocks.{block}.{part}" for block in (0, 1) for part in PARTS}
    idle = {f"transformer_blocks.1.{part}" for part in PARTS if part.startswith(("txt_mlp", "attn.to_add_out"))}
    assert reached == linears - idle


PARTS = (
    "attn.img_qkv",
    "attn.txt_qkv",
    "attn.to_out.0",
    "attn.to_add_out",
    *(f"{stream}_mlp.w{number}" for stream in ("img", "txt") for number in (1, 2, 3)),
)


def test_any_linear_can_be_a_target():
    targets = [name for name, part in random_lens().named_modules() if isinstance(part, nn.Linear)]
    model, _ = adapted(targets=targets)
    velocity(model).square().sum().backward()
    assert len(adapter_parameters(model)) == 2 * (len(targets) - 4)  # the last block's text half
    assert all(parameter.grad.abs().max() > 0 for parameter in adapter_parameters(model).values())


def test_the_same_for_the_same_seed_and_no_other_number_is_drawn():
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    first, second = random_lens(), random_lens()
    add_adapters(first, LoraMethod(), seed=7)
    assert torch.equal(torch.rand(()), expected)
    torch.manual_seed(99)
    add_adapters(second, LoraMethod(), seed=7)
    other = random_lens()
    add_adapters(other, LoraMethod(), seed=8)
    same, differs = adapter_parameters(second), adapter_parameters(other)
    assert all(torch.equal(parameter, same[name]) for name, parameter in adapter_parameters(first).items())
    assert any(not torch.equal(parameter, differs[name]) for name, parameter in same.items())


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_in_float32_beside_half_precision(kind):
    model, _ = adapted(kind, dtype=torch.bfloat16, disturbed=False)
    assert {parameter.dtype for parameter in adapter_parameters(model).values()} == {torch.float32}
    assert velocity(model, torch.bfloat16).dtype == torch.bfloat16


def test_a_target_that_is_not_there():
    with pytest.raises(ConfigError, match=r"no linear 'to_q'; it has img_in, txt_in, .*attn.img_qkv") as caught:
        adapted(targets=("img_qkv", "to_q"))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="reaches the output"):
        adapted(targets=("transformer_blocks.1.txt_mlp.w1",))


def test_weights_of_another_method():
    model, _ = adapted(rank=2)
    with pytest.raises(ConfigError, match="the weights are not those of a lora of rank 4"):
        finish_adapters(random_lens(), LoraMethod(rank=4), model.state_dict())


def test_config():
    parse = TypeAdapter(MethodConfig).validate_python
    assert parse({"type": "full"}) == FullMethod()
    assert parse({"type": "lora", "kind": "dora", "rank": 4}).alpha is None
    for wrong in ({"type": "full", "rank": 4}, {"type": "lora", "rank": 0}, {"type": "lora", "kind": "loha"}, {}):
        with pytest.raises(ValidationError):
            parse(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_sharded(kind):
    """Two ranks with FSDP2: every adapter gets the gradient that it gets alone, and the frozen weights none."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(Path(__file__).with_name("two_ranks.py")), kind),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["adapters"] == len(adapter_parameters(adapted(kind)[0]))
    assert told["smallest_gradient"] > 0
    assert told["frozen_with_gradient"] == []
