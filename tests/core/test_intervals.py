"""Wilson's interval against scipy's, and what clusters and strata make of it."""

from __future__ import annotations

import random

import pytest
import scipy.stats

from lens_core.intervals import clustered_interval, stratified_interval, wilson_interval


@pytest.mark.parametrize("trials", [1, 2, 3, 7, 20, 100, 1000, 54_321])
def test_agrees_with_scipy(trials):
    for successes in sorted({0, 1, trials // 3, trials // 2, trials - 1, trials}):
        low, high = wilson_interval(successes, trials)
        expected = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert low == pytest.approx(expected.low, abs=1e-12)
        assert high == pytest.approx(expected.high, abs=1e-12)
        assert 0 <= low <= successes / trials <= high <= 1


def test_other_levels_agree_too():
    for level in (0.5, 0.9, 0.99):
        z = scipy.stats.norm.ppf(0.5 + level / 2)
        expected = scipy.stats.binomtest(7, 30).proportion_ci(level, method="wilson")
        assert wilson_interval(7, 30, z=z) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("trials", [1, 5, 40, 997])
def test_none_and_all_touch_the_ends(trials):
    low, high = wilson_interval(0, trials)
    assert low == 0
    assert 0 < high < 1
    assert wilson_interval(trials, trials) == pytest.approx((1 - high, 1))
    assert wilson_interval(trials, trials)[1] == 1


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, -1), (1, 0), (float("nan"), 5)])
def test_no_share(successes, trials):
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(successes, trials)


def test_without_trials_all_is_possible():
    assert wilson_interval(0, 0) == clustered_interval([]) == (0.0, 1.0)


def test_single_sentences_make_the_plain_interval():
    clusters = [(1, 1)] * 7 + [(0, 1)] * 93
    # n / (n - 1), the one difference, makes the effect 100 / 99
    assert clustered_interval(clusters) == pytest.approx(wilson_interval(7 * 0.99, 99), abs=1e-9)
    assert clustered_interval([]) == (0.0, 1.0)
    assert clustered_interval([(0, 4)]) == wilson_interval(0, 4)


def test_whole_captions_that_are_wrong_count_as_one_each():
    low, high = clustered_interval([(8, 8)] * 10 + [(0, 8)] * 90)
    assert (low, high) == pytest.approx(wilson_interval(10 * 0.99, 99), abs=1e-9)
    plain = wilson_interval(80, 800)
    assert high - low > 2 * (plain[1] - plain[0])


def test_the_interval_holds_what_it_promises_for_clusters():
    rng = random.Random(0)
    held = naive = 0
    for _ in range(600):
        clusters = []
        for _ in range(80):
            units, rate = rng.randrange(3, 12), 0.5 if rng.random() < 0.2 else 0.0
            clusters.append((sum(rng.random() < rate for _ in range(units)), units))
        low, high = clustered_interval(clusters)
        held += low <= 0.1 <= high
        low, high = wilson_interval(sum(a for a, _ in clusters), sum(b for _, b in clusters))
        naive += low <= 0.1 <= high
    assert held / 600 > 0.92
    assert naive / 600 < 0.85


def test_shards_count_by_their_size_in_the_whole():
    share, low, high = stratified_interval([(900, [(0, 4)] * 50), (100, [(4, 4)] * 50)])
    assert share == pytest.approx(0.1)
    assert low < 0.1 < high
    known, low, high = stratified_interval([(50, [(1, 4)] * 25 + [(0, 4)] * 25), (50, [(2, 4)] * 25 + [(0, 4)] * 25)])
    assert known == pytest.approx(0.1875)
    assert stratified_interval([(10, [])]) == (0.0, 0.0, 1.0)


def test_strata_without_a_success_or_a_failure():
    rng = random.Random(0)
    for good in (True, False):
        for _ in range(50):
            strata = [(rng.randrange(5, 900), [(4 * int(good), 4)] * rng.randrange(1, 5)) for _ in range(7)]
            share, low, high = stratified_interval(strata)
            assert share == pytest.approx(float(good))
            assert 0 <= low <= high <= 1
