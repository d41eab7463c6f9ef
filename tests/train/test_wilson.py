"""Wilson's interval against scipy's."""

from __future__ import annotations

import pytest
import scipy.stats

from lens_train.evaluation.wilson import wilson_interval


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


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5), (0, -1), (1, 0)])
def test_no_share(successes, trials):
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(successes, trials)
