"""Arms that were given equal FLOPs have spent equal FLOPs: counted by torch, not by us.

Whatever the loop says of its FLOPs comes from our closed forms, and the budget is kept with them. So the steps that
a budget buys are taken once more, with captions of each arm, and torch's counter counts every matrix product.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from core.diffusion.test_flops import WithoutPadding
from lens_core.diffusion.text_encoders.small import encoder as small_text_encoder
from lens_train.loop.budget import Budget
from lens_train.planning.config import BatchConfig
from train.conftest import training_set

BUDGET = 3e10
"""Of some sixty steps, so that the last of them, which is taken or left, is less than 1 % either way."""


def counted(trainer):
    """What torch counts in the steps of a whole run, forward and backward: all, and attention's part; and the steps."""
    trainer.transformer.attention = WithoutPadding()
    loader, planned, total, attention = trainer.loader(), 0.0, 0, 0
    while trainer.budget.allows(
        flops=planned,
        steps=0,
        samples=0,
        tokens=0,
        seconds=0,
        next_flops=trainer.plan.pack(trainer.counters.step).flops,
    ):
        batch = trainer.assemble(next(loader))
        planned += batch.flops
        trainer.counters.step += 1
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            trainer.sample_losses(batch).sum().backward()
        total += counter.get_total_flops()
        attention += counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    return total, attention, trainer.counters.step


@pytest.fixture
def arms(scenes, lens_registry, new_trainer, tmp_path, monkeypatch):
    """What torch counts of a brief and a dense arm."""
    monkeypatch.setattr(small_text_encoder, "ATTENTION", WithoutPadding())
    found = {}
    for style in ("brief", "dense"):
        images = training_set(scenes[style], lens_registry, tmp_path / style)
        trainer = new_trainer(
            state=f"state-{style}", images=images, batch=BatchConfig(samples=4), budget=Budget(flops=BUDGET)
        )
        found[style] = counted(trainer)
    return found


def test_arms_of_one_budget_spend_the_same(arms):
    (brief, brief_attention, brief_steps), (dense, dense_attention, dense_steps) = arms["brief"], arms["dense"]
    assert brief == pytest.approx(dense, rel=0.01)
    assert brief == pytest.approx(BUDGET, rel=0.01)
    assert 0 < brief_attention < brief
    assert brief_attention < dense_attention < dense
    assert brief_steps > dense_steps > 50  # text is counted: what is longer buys fewer steps
