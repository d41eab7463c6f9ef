"""Intervals and p values against closed forms, published examples and simulations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lens_core.intervals import wilson_interval
from lens_train.ablation.statistics import Count, accuracy, differences, holm, mean


def counts(*shares, n=100):
    return {seed: Count(correct=round(share * n), n=n) for seed, share in enumerate(shares)}


def difference(arm, baseline):
    return differences({"arm": arm}, baseline)["arm"]


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


def test_two_arms_with_the_same_seeds_are_a_paired_t_test():
    found = difference(counts(0.5, 0.6, 0.7), counts(0.4, 0.44, 0.51))
    apart = np.array([0.1, 0.16, 0.19])
    error = apart.std(ddof=1) / math.sqrt(3)
    assert found.basis == "paired"
    assert found.value == pytest.approx(apart.mean())
    assert found.high - found.value == pytest.approx(found.value - found.low) == pytest.approx(t_of_two(0.95) * error)
    t = apart.mean() / error
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # the closed form for two degrees of freedom


def test_several_arms_with_the_same_seeds_are_a_block_design():
    """Least squares with a column for each arm and each seed; only arms with the baseline's seeds belong to it."""
    table = np.round(np.random.default_rng(8).uniform(0.4, 0.7, (4, 3)), 2)
    arms = {str(number): counts(*row) for number, row in enumerate(table[1:])}
    alone = {"alone": counts(0.9), "strange": {seed + 9: count for seed, count in counts(0.9, 0.7).items()}}
    found = differences(arms | alone, counts(*table[0]))
    columns = [np.eye(4)[arm, 1:].tolist() + np.eye(3)[seed].tolist() for arm in range(4) for seed in range(3)]
    design, y = np.array(columns), table.ravel()
    effects, (squares,), *_ = np.linalg.lstsq(design, y)
    errors = np.sqrt(squares / 6 * np.diag(np.linalg.inv(design.T @ design)))
    for number in range(3):
        apart = found[str(number)]
        assert apart.value == pytest.approx(effects[number])
        assert apart.p == pytest.approx(two_sided_p(effects[number] / errors[number], 6), abs=1e-6)
        assert two_sided_p((apart.high - apart.value) / errors[number], 6) == pytest.approx(0.05, abs=1e-6)
    assert [found[name].basis for name in ("alone", "strange")] == ["prompts", "welch"]


def test_other_seeds_are_two_samples_of_their_own():
    one, other = np.array([0.5, 0.6, 0.7]), np.array([0.42, 0.44, 0.41, 0.45])
    found = difference(counts(*one), {seed + 7: count for seed, count in counts(*other).items()})
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
    same = difference(counts(0.6, 0.7, 0.8), counts(0.5, 0.6, 0.7))  # the differences are equal but for rounding
    assert (same.basis, same.p, same.value) == ("prompts", None, pytest.approx(0.1))
    assert same.low < 0 < same.high
    other_seeds = {seed + 5: count for seed, count in counts(0.5, 0.5, 0.5).items()}
    assert difference(counts(1.0, 1.0, 1.0), other_seeds).basis == "prompts"


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


def test_nineteen_of_twenty_intervals_hold_the_truth():
    """Four arms with unlike spreads (that of few prompts is largest at one half), and luck that a seed's arms share."""
    generator, trials = np.random.default_rng(2), 1000
    held = {"accuracy": 0, "pair": 0, "block": 0, "false": 0}
    for _ in range(trials):
        start = generator.normal(0, 0.03, 3)
        dense, brief, twin, alt = (runs(generator, share, start) for share in (0.7, 0.55, 0.55, 0.2))
        estimate, pair = accuracy(dense), difference(dense, brief)
        block = differences({"dense": dense, "twin": twin, "alt": alt}, brief)
        held["accuracy"] += estimate.low <= 0.7 <= estimate.high
        held["pair"] += pair.low <= 0.15 <= pair.high
        held["block"] += block["dense"].low <= 0.15 <= block["dense"].high
        held["false"] += block["twin"].p is not None and block["twin"].p < 0.05
    # Two standard deviations of a thousand trials are 14.
    assert 930 < held["accuracy"] < 970
    assert 930 < held["pair"] < 970
    assert 925 < held["block"] < 965
    assert 35 < held["false"] < 75


def test_pairs_of_three_seeds_alone_would_hardly_show_anything():
    """15 points between two arms, at the level that seven skills leave: four arms show what two cannot."""
    generator, trials = np.random.default_rng(9), 300
    shown = {"pair": 0, "block": 0}
    for _ in range(trials):
        start = generator.normal(0, 0.03, 3)
        dense, brief, mixed, alt = (runs(generator, share, start) for share in (0.7, 0.55, 0.6, 0.4))
        shown["pair"] += difference(dense, brief).p < 0.05 / 7
        shown["block"] += differences({"dense": dense, "mixed": mixed, "alt": alt}, brief)["dense"].p < 0.05 / 7
    assert shown["pair"] < 0.25 * trials
    assert shown["block"] > 0.5 * trials


def test_a_bootstrap_of_three_seeds_would_promise_too_much():
    generator = np.random.default_rng(3)
    samples = np.array(list(itertools.product(range(3), repeat=3)))
    held = 0
    for _ in range(2000):
        seeds = generator.normal(0.7, 0.05, 3)
        low, high = np.quantile(seeds[samples].mean(axis=1), (0.025, 0.975))
        held += low <= 0.7 <= high
    assert held < 0.85 * 2000
