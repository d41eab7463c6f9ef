"""Gradient norms and update ratios by group, against weights and gradients that a test looks at itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lens_train.optim.config import OptimizerConfig
from lens_train.planning.config import BatchConfig


@pytest.fixture
def deep(new_trainer, lens_registry):
    """A trainer of four blocks, none of which is the identity, two packs a step."""

    def make(state):
        # The clip is far below any gradient: norms are of what was there before it.
        batch, optimizer = BatchConfig(samples=2, packs_per_step=2), OptimizerConfig(clip=1e-4)
        trainer = new_trainer(state=state, batch=batch, optimizer=optimizer)
        config = {"type": "lens", "preset": "nano", "num_layers": 4, "num_attention_heads": 1}
        transformer = lens_registry.build(
            "models",
            lens_registry.parse("models", config),
            in_channels=trainer.autoencoder.channels,
            enc_hidden_dim=trainer.captions.encoder.width,
            num_text_layers=1,
        )
        transformer.init_weights(3)
        generator = torch.Generator().manual_seed(3)
        for parameter in transformer.parameters():
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return replace(trainer, transformer=transformer)

    return make


def members(trainer):
    """The parameters of each group."""
    first, second, third, fourth = (list(block.parameters()) for block in trainer.transformer.transformer_blocks)
    inside = {id(parameter) for parameter in [*first, *second, *third, *fourth]}
    return {
        "ends": [parameter for parameter in trainer.transformer.parameters() if id(parameter) not in inside],
        "blocks1": [*first, *second],
        "blocks2": third,
        "blocks3": fourth,
        "text_encoder": list(trainer.captions.encoder.parameters()),
    }


def norm(tensors):
    return sum(tensor.detach().double().square().sum().item() for tensor in tensors) ** 0.5


def test_norms_and_ratios_are_those_computed_by_hand(deep):
    trainer, twin = deep("state"), deep("twin")
    before = {name: [p.detach().clone() for p in own] for name, own in members(trainer).items()}
    loader = trainer.loader()
    record = trainer.train_step([next(loader), next(loader)])
    loader = twin.loader()
    losses = [twin.sample_losses(twin.assemble(next(loader))) for _ in range(2)]
    torch.cat(losses).mean().backward()
    norms = {name: norm(p.grad for p in own if p.grad is not None) for name, own in members(twin).items()}
    ratios = {
        name: norm(p - old for p, old in zip(own, before[name], strict=True)) / norm(before[name])
        for name, own in members(trainer).items()
    }
    assert min(norms.values()) > trainer.optimizer.clip
    assert min(ratios.values()) > 0

    def told(prefix):
        return {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}

    assert told("grad_norm_") == pytest.approx(norms, rel=1e-4)
    assert told("update_ratio_") == pytest.approx(ratios, rel=1e-4)
    assert record["grad_norm"] == pytest.approx(sum(one**2 for one in norms.values()) ** 0.5, rel=1e-4)
