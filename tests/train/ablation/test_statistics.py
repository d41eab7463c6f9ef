"""Intervals and p values against closed forms, published examples and simulations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lens_core.intervals import wilson_interval
from lens_train.ablation.statistics import Count, accuracy, difference, holm, mean


def counts(*shares, n=100):
    return {seed: Count(correct=round(share * n), n=n) for seed, share in enumerate(shares)}


def t_of_two(level):
    """The two-sided quantile of Student's t with two degrees of freedom, which has a closed form."""
    p = 0.5 + level / 2
    return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))


def two_sided_p(t, freedom):
    """Student's t by integration of its density."""
    x = np.linspace(-abs(t), abs(t), 200_001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    return 1 - float(np.trapezoid(scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2), x))


def test_the_mean_of_three_has_the_interval_of_two_degrees_of_freedom():
    centre, low, high = mean([1.0, 2.0, 3.0])
    assert centre == 2
    assert high - 2 == pytest.approx(2 - low) == pytest.approx(t_of_two(0.95) / math.sqrt(3))
    assert mean([5.0]) == (5.0, -math.inf, math.inf)


def test_accuracy_of_seeds_is_their_mean_and_stays_within_0_and_1():
    estimate = accuracy(counts(0.5, 0.6, 0.7))
    assert (estimate.value, estimate.seeds, estimate.basis, estimate.exploratory) == (
        pytest.approx(0.6),
        3,
        "seeds",
        False,
    )
    assert estimate.high - estimate.low == pytest.approx(2 * t_of_two(0.95) * 0.1 / math.sqrt(3))
    assert accuracy(counts(0.97, 1.0, 1.0)).high == 1.0
    assert accuracy(counts(0.03, 0.0, 0.0)).low == 0.0


def test_one_seed_and_seeds_that_agree_have_the_interval_of_their_prompts():
    alone = accuracy(counts(0.7))
    assert (alone.low, alone.high) == wilson_interval(70, 100)
    assert (alone.basis, alone.exploratory) == ("prompts", True)
    agreed = accuracy(counts(0.0, 0.0, 0.0))
    assert (agreed.low, agreed.high) == wilson_interval(0, 100)  # of the same hundred prompts, and not of three hundred
    assert (agreed.value, agreed.basis, agreed.exploratory) == (0.0, "prompts", False)
    assert accuracy(counts(0.4, 0.5)).exploratory


@pytest.mark.parametrize("other", [(0.42, 0.44, 0.41, 0.45), (0.0, 0.0, 0.0), (0.6, 0.6, 0.6)])
def test_two_arms_are_two_samples_with_luck_of_their_own(other):
    one, other = np.array([0.5, 0.6, 0.7]), np.array(other)
    found = difference(counts(*one), counts(*other))
    parts = [side.var(ddof=1) / len(side) for side in (one, other)]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (one, other), strict=True))
    t = (one.mean() - other.mean()) / math.sqrt(sum(parts))
    assert found.basis == "welch"
    assert found.p == pytest.approx(two_sided_p(t, freedom), abs=1e-6)
    # The end of the interval is where the p value is 5 %.
    assert two_sided_p((found.value - found.low) / math.sqrt(sum(parts)), freedom) == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 20), 0.6791, 1.0000)],
)
def test_a_lone_seed_has_newcombes_interval(one, other, low, high):
    """Examples (a), (c) and (g) of Newcombe's table II, method 10."""
    found = difference({0: Count(correct=one[0], n=one[1])}, {0: Count(correct=other[0], n=other[1])})
    assert (found.basis, found.p) == ("prompts", None)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_seeds_without_any_spread_prove_nothing():
    never = counts(0.0, 0.0, 0.0)
    same = difference(never, never)  # 0 % three times is no proof of 0 %
    assert (same.basis, same.p, same.value) == ("prompts", None, 0)
    assert same.low < -0.02 < 0.02 < same.high
    assert difference(counts(1.0, 1.0, 1.0), counts(0.5, 0.5, 0.5)).basis == "prompts"


def test_equal_means_are_no_difference():
    same = difference(counts(0.01, 0.0, 0.0), counts(0.0, 0.01, 0.0))
    assert (same.value, same.p) == (pytest.approx(0), pytest.approx(1))
    assert -0.05 < same.low < 0 < same.high < 0.05


def test_holm_is_the_closed_test_of_bonferroni():
    generator = np.random.default_rng(1)
    for _ in range(20):
        p = dict(enumerate(generator.uniform(0, 0.2, 5)))
        subsets = [s for size in range(1, 6) for s in itertools.combinations(p, size)]
        closed = {i: max(min(1, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in p}
        assert holm(p) == pytest.approx(closed)
    assert holm({}) == {}
    assert list(holm({"b": 0.9, "a": 0.01})) == ["b", "a"]


def runs(generator, share, start, prompts=200, spread=0.03):
    """Accuracies of three seeds, some of whose luck (`start`) other arms share."""
    chance = np.clip(share + start + generator.normal(0, spread, 3), 0, 1)
    return {
        seed: Count(correct=int(right), n=prompts) for seed, right in enumerate(generator.binomial(prompts, chance))
    }


@pytest.mark.parametrize(("spread", "other"), [(0.03, 0.03), (0.13, 0.03), (0.01, 0.06)])
def test_nineteen_of_twenty_intervals_hold_the_truth(spread, other):
    """Arms whose luck differs, and luck that the arms of a seed share."""
    generator, trials = np.random.default_rng(2), 1000
    held = {"accuracy": 0, "apart": 0, "false": 0}
    for _ in range(trials):
        start = generator.normal(0, 0.02, 3)
        dense, twin = (runs(generator, 0.6, start, spread=spread) for _ in range(2))
        brief = runs(generator, 0.45, start, spread=other)
        estimate, apart, same = accuracy(dense), difference(dense, brief), difference(dense, twin)
        held["accuracy"] += estimate.low <= 0.6 <= estimate.high
        held["apart"] += apart.low <= 0.15 <= apart.high
        held["false"] += same.p is not None and same.p < 0.05
    # Two standard deviations of a thousand trials are 14; with three seeds Welch's test errs on the safe side.
    assert 930 < held["accuracy"] < 970
    assert 930 < held["apart"] < 990
    assert 15 < held["false"] < 70


def test_an_arm_without_luck_lends_none_to_others():
    """One arm that is always wrong, one in the middle of learning: what either scatters says nothing of the other."""
    generator, trials, held = np.random.default_rng(4), 1000, 0
    for _ in range(trials):
        never = {seed: Count(correct=int(generator.random() < 0.3), n=200) for seed in range(3)}
        found = difference(runs(generator, 0.3, np.zeros(3), spread=0.04), never)
        held += found.low <= 0.3 - 0.3 / 200 <= found.high
    assert 930 < held < 970


def test_a_bootstrap_of_three_seeds_would_promise_too_much():
    generator = np.random.default_rng(3)
    samples = np.array(list(itertools.product(range(3), repeat=3)))
    held = 0
    for _ in range(2000):
        seeds = generator.normal(0.7, 0.05, 3)
        low, high = np.quantile(seeds[samples].mean(axis=1), (0.025, 0.975))
        held += low <= 0.7 <= high
    assert held < 0.85 * 2000
