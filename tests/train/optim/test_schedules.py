"""How the learning rate runs, by the values that each schedule is known by."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from lens_train.optim.build import learning_rate_factor
from lens_train.optim.config import OptimizerConfig


@pytest.mark.parametrize(
    ("schedule", "by_share"),
    [
        ("constant", {0.0: 1.0, 0.5: 1.0, 1.0: 1.0, 1.2: 1.0}),
        ("linear", {0.0: 1.0, 0.25: 0.75, 1.0: 0.0, 1.2: 0.0}),
        ("cosine", {0.0: 1.0, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0.0, 1.2: 0.0}),
        ("wsd", {0.0: 1.0, 0.7: 1.0, 0.85: 0.5, 1.0: 0.0, 1.2: 0.0}),
    ],
)
def test_schedules(schedule, by_share):
    config = OptimizerConfig(schedule=schedule, warmup_steps=0)
    assert {share: learning_rate_factor(config, 1, share) for share in by_share} == pytest.approx(by_share, abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_each_is_warmed_up(schedule):
    warmed = OptimizerConfig(schedule=schedule, warmup_steps=10)
    cold = OptimizerConfig(schedule=schedule, warmup_steps=0)
    for step, share in ((0, 0.0), (4, 0.1), (9, 0.3), (50, 0.9)):
        expected = min(1, (step + 1) / 10) * learning_rate_factor(cold, step, share)
        assert learning_rate_factor(warmed, step, share) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_none_ever_rises_after_its_warm_up(schedule):
    config = OptimizerConfig(schedule=schedule, warmup_steps=0)
    factors = [learning_rate_factor(config, 1, share / 100) for share in range(111)]
    assert factors == sorted(factors, reverse=True)
    assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in factors)


def test_a_fraction_that_no_schedule_would_use_is_refused():
    with pytest.raises(ValidationError, match="decay_fraction belongs to schedule: wsd, not to cosine"):
        OptimizerConfig(schedule="cosine", decay_fraction=0.2)
