"""Budgets: exactly one kind, and FLOPs that end as near to it as steps allow."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_train.loop.budget import Budget

NOTHING = {"flops": 0.0, "steps": 0, "samples": 0, "tokens": 0, "seconds": 0.0}
SOME = {"flops": 50.0, "steps": 7, "samples": 28, "tokens": 900, "seconds": 9.0}


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({}, "exactly one of flops, steps, samples, tokens and minutes, not none"),
        ({"steps": 1, "minutes": 1}, "not steps and minutes"),
        ({"flops": 1, "steps": 1}, "not flops and steps"),
        ({"flops": 1, "steps": 1, "minutes": 1}, "not flops and steps and minutes"),
        ({"samples": 1, "tokens": 1}, "not samples and tokens"),
        ({"samples": 0}, "greater than 0"),
        ({"tokens": 1.5}, "valid integer"),
        ({"steps": 0}, "greater than 0"),
        ({"flops": -1}, "greater than 0"),
        ({"minutes": 0}, "greater than 0"),
        ({"hours": 1}, "unknown option"),
    ],
)
def test_exactly_one(given_, words):
    with pytest.raises(ValueError, match=words):
        Budget(**given_)


@pytest.mark.parametrize(
    ("budget", "used", "share"),
    [
        (Budget(flops=200.0), SOME, 0.25),
        (Budget(steps=20), SOME, 0.35),
        (Budget(samples=40), SOME, 0.7),
        (Budget(tokens=1000), SOME, 0.9),
        (Budget(minutes=0.5), SOME, 0.3),
        (Budget(minutes=0.5), NOTHING | {"seconds": 33.0}, 1.1),
    ],
)
def test_share(budget, used, share):
    assert budget.share(**used) == pytest.approx(share)


@pytest.mark.parametrize(
    "budget",
    [Budget(flops=1e9), Budget(steps=1), Budget(samples=1), Budget(tokens=1), Budget(minutes=1)],
)
def test_nothing_is_used_at_first(budget):
    assert budget.share(**NOTHING) == 0
    assert budget.allows(**NOTHING, next_flops=1e6)


def test_steps_are_counted_out():
    budget = Budget(steps=3)
    allowed = [budget.allows(**SOME | {"flops": 1e30, "steps": steps}, next_flops=1e30) for steps in range(5)]
    assert allowed == [True, True, True, False, False]


@pytest.mark.parametrize("kind", ["samples", "tokens"])
def test_samples_and_tokens_end_with_the_step_that_uses_them_up(kind):
    budget = Budget(**{kind: 100})
    allowed = [budget.allows(**SOME | {kind: used}, next_flops=1e30) for used in (0, 99, 100, 101)]
    assert allowed == [True, True, False, False]


def test_minutes_end_after_sixty_seconds_each():
    budget = Budget(minutes=0.1)
    assert budget.allows(**SOME | {"seconds": 5.99}, next_flops=1e30)
    assert not budget.allows(**NOTHING | {"seconds": 6.0}, next_flops=0.0)


def spend(budget, costs):
    """What is spent when steps of these costs are made as long as the budget allows."""
    total = 0.0
    for steps, cost in enumerate(costs):
        if not budget.allows(**NOTHING | {"flops": total, "steps": steps}, next_flops=cost):
            return total, cost
        total += cost
    raise AssertionError("the budget was never used up")


@given(costs=st.lists(st.floats(1, 100), min_size=1, max_size=30), budget=st.floats(1, 1000))
@settings(max_examples=200, deadline=None)
def test_flops_end_nearest_to_the_budget(costs, budget):
    costs = costs + [100.0] * 20
    total, refused = spend(Budget(flops=budget), costs)
    # One more step would have ended no nearer.
    assert abs(total - budget) <= abs(total + refused - budget) + 1e-9
    assert abs(total - budget) <= max(costs) / 2 + 1e-9


def test_arms_with_steps_of_other_sizes_spend_the_same():
    budget = Budget(flops=1e6)
    small, _ = spend(budget, [300.0] * 10_000)
    large, _ = spend(budget, [1700.0] * 10_000)
    assert abs(small - 1e6) <= 150
    assert abs(large - 1e6) <= 850
