"""Which optimiser moves which parameter, and how the learning rate runs."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from lens_train.optim.build import Optimizers, learning_rate_factor
from lens_train.optim.config import OptimizerConfig
from lens_train.optim.muon import Muon

BLOCK_MATRICES = {
    "attn.img_qkv.weight",
    "attn.txt_qkv.weight",
    "attn.to_out.0.weight",
    "attn.to_add_out.weight",
    *(f"{stream}_mlp.w{number}.weight" for stream in ("img", "txt") for number in (1, 2, 3)),
}
ENCODER_MATRICES = {f"{name}.weight" for name in ("qkv", "out", "w1", "w2", "w3")}


@pytest.fixture
def modules(lens_registry):
    """The nano denoiser and its text encoder."""
    from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder

    config = lens_registry.parse("models", {"type": "lens", "preset": "nano"})
    denoiser = lens_registry.build("models", config, in_channels=192, enc_hidden_dim=128, num_text_layers=1)
    encoder = SmallTextEncoder.fit(lens_registry.parse("text_encoders", "small"), ["a red circle"])
    return denoiser, encoder


def names_of(optimizer, modules):
    by_id = {id(p): (number, name) for number, module in enumerate(modules) for name, p in module.named_parameters()}
    return [by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]


def split(optimizers):
    (adamw,) = [part for part in optimizers.parts if isinstance(part, torch.optim.AdamW)]
    muon = [part for part in optimizers.parts if isinstance(part, Muon)]
    return adamw, muon


def test_every_parameter_has_exactly_one_optimiser(modules):
    for kind in ("muon", "adamw"):
        optimizers = Optimizers(OptimizerConfig(type=kind), modules)
        moved = [name for part in optimizers.parts for name in names_of(part, modules)]
        assert len(moved) == len(set(moved))
        every = {(number, name) for number, module in enumerate(modules) for name, _ in module.named_parameters()}
        assert set(moved) == every


def test_muon_moves_the_matrices_of_the_blocks_and_nothing_else(modules):
    _, (muon,) = split(Optimizers(OptimizerConfig(), modules))
    blocks = {
        (0, f"transformer_blocks.{number}.{name}")
        for number in range(len(modules[0].transformer_blocks))
        for name in BLOCK_MATRICES
    }
    layers = {(1, f"layers.0.{name}") for name in ENCODER_MATRICES}
    assert set(names_of(muon, modules)) == blocks | layers


def test_adamw_alone_moves_everything(modules):
    optimizers = Optimizers(OptimizerConfig(type="adamw"), modules)
    assert len(optimizers.parts) == 1
    assert isinstance(optimizers.parts[0], torch.optim.AdamW)


def test_weight_decay_is_for_matrices(modules):
    adamw, (muon,) = split(Optimizers(OptimizerConfig(weight_decay=0.1), modules))
    for group in adamw.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}
    assert [group["weight_decay"] for group in muon.param_groups] == [0.1]
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0, 0.1}


def test_frozen_parameters_are_left_alone(modules):
    denoiser, encoder = modules
    encoder.requires_grad_(False)
    optimizers = Optimizers(OptimizerConfig(), modules)
    moved = {name for part in optimizers.parts for name in names_of(part, modules)}
    assert {number for number, _ in moved} == {0}
    assert len(moved) == len(list(denoiser.parameters()))


def test_settings_reach_the_optimisers(modules):
    adamw, (muon,) = split(Optimizers(OptimizerConfig(lr=0.5, muon_lr=0.25, betas=(0.8, 0.7)), modules))
    assert {(group["lr"], group["betas"]) for group in adamw.param_groups} == {(0.5, (0.8, 0.7))}
    assert {group["lr"] for group in muon.param_groups} == {0.25}


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.99)])
def test_a_decay_rate_lies_below_one(betas):
    with pytest.raises(ValidationError, match=r"less than 1|greater than or equal to 0"):
        OptimizerConfig(betas=betas)


def test_a_factor_scales_the_peaks_and_does_not_add_up(modules):
    optimizers = Optimizers(OptimizerConfig(lr=0.5, muon_lr=0.25), modules)
    for factor in (0.5, 0.1, 0.0, 1.0, 0.3):
        optimizers.set_factor(factor)
        adamw, (muon,) = split(optimizers)
        assert {group["lr"] for group in adamw.param_groups} == {0.5 * factor}
        assert {group["lr"] for group in muon.param_groups} == {0.25 * factor}


def test_steps_move_every_part_and_zero_grad_forgets(modules):
    optimizers = Optimizers(OptimizerConfig(), modules)
    parameters = [p for module in modules for p in module.parameters()]
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizers.step()
    assert not any(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    optimizers.zero_grad()
    assert all(p.grad is None for p in parameters)


@pytest.mark.parametrize(
    ("step", "share", "factor"),
    [
        (0, 0.0, 1 / 50),  # warm-up is by steps, and the first step does move
        (24, 0.1, 0.5),
        (49, 0.1, 1.0),
        (50, 0.1, 1.0),
        (1000, 0.5, 1.0),
        (1000, 0.7, 1.0),
        (1000, 0.85, 0.5),
        (1000, 0.94, 0.2),
        (1000, 1.0, 0.0),
        (1000, 1.01, 0.0),  # the last step may bring the total a little beyond the budget
        (24, 0.85, 0.25),  # both at once
    ],
)
def test_warm_up_plateau_and_fall(step, share, factor):
    config = OptimizerConfig(warmup_steps=50, decay_fraction=0.3)
    assert learning_rate_factor(config, step, share) == pytest.approx(factor)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999, 1.0])
def test_without_a_fall_the_rate_stays(share):
    assert learning_rate_factor(OptimizerConfig(decay_fraction=0), 1000, share) == 1.0


def test_without_a_warm_up_the_first_step_is_at_the_peak():
    assert learning_rate_factor(OptimizerConfig(warmup_steps=0), 0, 0.0) == 1.0


def test_a_fall_over_the_whole_budget_is_linear():
    config = OptimizerConfig(warmup_steps=0, decay_fraction=1)
    assert [learning_rate_factor(config, 0, share) for share in (0, 0.25, 0.5, 1)] == [1, 0.75, 0.5, 0]
