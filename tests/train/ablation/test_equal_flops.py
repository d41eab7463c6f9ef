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


STYLES = ("alt-text", "brief", "dense")
MADE = {
    "mixed": {"source": ["brief", "dense"], "odds": [1, 1]},
    "wrong": {"source": "dense", "changes": [{"type": "wrong-facts", "share": 0.4}]},
}


@pytest.fixture
def arms(run_stages, lens_registry, new_trainer, tmp_path, monkeypatch):
    """What torch counts of each kind of captions that the experiment trains on."""
    monkeypatch.setattr(small_text_encoder, "ATTENTION", WithoutPadding())
    stages = [{"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 24}}]
    for style in STYLES:
        captioner = {"type": "scene-graph", "style": style}
        stages.append({"name": style, "type": "caption", "source": "images", "captioner": captioner})
    stages += [{"name": name, "type": "change-captions", "vocabulary": "scenes", **how} for name, how in MADE.items()]
    made, found = run_stages(tmp_path, stages), {}
    for arm in (*STYLES, *MADE):
        images = training_set(made[arm], lens_registry, tmp_path / arm)
        trainer = new_trainer(state=arm, images=images, batch=BatchConfig(samples=4), budget=Budget(flops=BUDGET))
        found[arm] = counted(trainer)
    return found


def test_arms_of_one_budget_spend_the_same(arms):
    totals = {arm: total for arm, (total, _, _) in arms.items()}
    assert totals == pytest.approx(dict.fromkeys(arms, BUDGET), rel=0.01)
    assert max(totals.values()) < 1.01 * min(totals.values())
    assert all(0 < attention < total for total, attention, _ in arms.values())
    assert arms["alt-text"][1] < arms["brief"][1] < arms["mixed"][1] < arms["dense"][1]
    steps = [arms[arm][2] for arm in ("alt-text", "brief", "mixed", "dense")]
    assert steps == sorted(set(steps), reverse=True)  # text is counted: what is longer buys fewer steps
    assert steps[-1] > 50
