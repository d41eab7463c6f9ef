"""Factors and shares that are known beforehand come back, with the coverage that is promised, and none is made up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from lens_train.ablation.scaling import Point, band, break_even, equivalent_scale, monotone

SIZES = (1.0, 4.0, 16.0)


def points(xs, means, *, spread=0.0, seeds=3, generator=None):
    """Accuracies of some seeds around means; without a generator, evenly spread. `spread` may be one a place."""
    offsets = np.linspace(-1, 1, seeds) if seeds > 1 else np.zeros(1)
    return [
        Point(x=x, values=tuple(m + s * (generator.normal(size=seeds) if generator else offsets)))
        for x, m, s in zip(xs, means, np.broadcast_to(spread, len(xs)), strict=True)
    ]


def logistic(u, slope=0.8, top=1.0):
    return top / (1 + np.exp(-slope * u))


def test_the_fit_is_isotonic_regression():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(200, 6))
    assert np.allclose(monotone(values), [isotonic_regression(row).x for row in values])
    assert (np.diff(monotone(values), axis=1) >= 0).all()
    flat = np.full((1, 5), 0.1) + np.array([[0, 1e-17, -1e-17, 0, 0]])
    assert (np.diff(monotone(flat)) >= 0).all()


def test_a_curve_moved_sideways_tells_how_far():
    # Straight lines over log2(x), 10 points a doubling, the upper one ahead by log2(3) doublings.
    long = points(SIZES, [0.3 + 0.1 * (math.log2(x) + math.log2(3)) for x in SIZES], spread=0.01)
    short = points(SIZES, [0.3 + 0.1 * math.log2(x) for x in SIZES], spread=0.01)
    factor = equivalent_scale(long, short)
    assert factor.value == pytest.approx(3)
    assert factor.low < 3 < factor.high
    assert (factor.smallest, factor.largest) == (1 / 16, 16)
    assert factor.levels == (pytest.approx(0.3 + 0.1 * math.log2(3)), pytest.approx(0.7))
    backwards = equivalent_scale(short, long)
    assert backwards.value == pytest.approx(1 / 3)
    assert equivalent_scale(long[::-1], short[::-1]) == factor  # the order of arms is free


def test_the_factor_is_read_at_common_levels_only():
    # In common: 0.4 … 0.5. There the short curve is at 4 … 16 and the long one at 1 … 2, with a straight line between.
    long, short = points((1, 2, 4), (0.4, 0.5, 0.9)), points((1, 4, 16), (0.1, 0.4, 0.5))
    factor = equivalent_scale(long, short)
    assert factor.levels == pytest.approx((0.4, 0.5))
    # log2: from 2 - 0 to 4 - 1 doublings, evenly: 2.5 in the mean.
    assert factor.value == pytest.approx(2**2.5, rel=1e-6)
    assert math.isnan(factor.low)  # no seed differs from another: nothing is known of the spread


def test_curves_that_do_not_meet_give_a_bound():
    long, short = points(SIZES, (0.7, 0.8, 0.9), spread=0.01), points(SIZES, (0.2, 0.3, 0.4), spread=0.01)
    above = equivalent_scale(long, short)
    assert (above.value, above.low, above.high, above.largest, above.levels) == (math.inf, math.inf, math.inf, 16, None)
    below = equivalent_scale(short, long)
    assert (below.value, below.low, below.high, below.smallest) == (0, 0, 0, 1 / 16)
    # Hardly apart: the bound is the estimate, and the interval reaches back into the range.
    nearly = equivalent_scale(long, points(SIZES, (0.5, 0.6, 0.69), spread=0.02))
    assert nearly.value == math.inf
    assert 1 < nearly.low < 16
    assert nearly.high == math.inf


def test_what_does_not_grow_has_no_factor():
    falling = points(SIZES, (0.6, 0.5, 0.4), spread=0.02)
    factor = equivalent_scale(falling, points(SIZES, (0.3, 0.5, 0.7), spread=0.02))
    assert math.isnan(factor.value)
    assert factor.low < 1 < factor.high


def test_one_seed_has_no_interval():
    factor = equivalent_scale(points(SIZES, (0.3, 0.5, 0.7), seeds=1), points(SIZES, (0.2, 0.4, 0.6), seeds=1))
    assert factor.value > 1
    assert math.isnan(factor.low)
    assert math.isnan(factor.high)


UNEQUAL = (0.01, 0.03, 0.1)  # seeds agree at one place, and lie far apart at another


@pytest.mark.parametrize("spread", [(0.03,) * 3, UNEQUAL, UNEQUAL[::-1]])
def test_a_known_factor_is_within_nineteen_of_twenty_intervals(spread):
    """Of three seeds a place they are rather too wide, but not so wide that they say nothing."""
    generator, held, trials, widths = np.random.default_rng(4), 0, 250, []
    u = np.log2(SIZES)
    for trial in range(trials):
        long = points(SIZES, logistic(u - 2 + math.log2(2.5)), spread=spread, generator=generator)
        short = points(SIZES, logistic(u - 2), spread=spread, generator=generator)
        factor = equivalent_scale(long, short, draws=200, seed=trial)
        held += factor.low <= 2.5 <= factor.high
        widths.append(factor.high / factor.low if factor.low else math.inf)
    assert held > 0.95 * trials
    assert np.median(widths) < 2.5


def test_noise_alone_shows_no_worth():
    generator, held, trials = np.random.default_rng(5), 0, 150
    u = np.log2(SIZES)
    for trial in range(trials):
        long, short = (points(SIZES, logistic(u - 2), spread=0.03, generator=generator) for _ in range(2))
        factor = equivalent_scale(long, short, draws=200, seed=trial)
        held += factor.low <= 1 <= factor.high
    assert 0.91 * trials < held
    flat = [points(SIZES, (0.5, 0.5, 0.5), spread=0.03, generator=generator) for _ in range(2)]
    factor = equivalent_scale(*flat)
    assert factor.low < 1 < factor.high


def logistic_factor(long, short):
    """The second choice: a straight line on the logit scale for each curve, apart at the middle of the common range."""
    lines = []
    for curve in (long, short):
        x = [math.log2(point.x) for point in curve for _ in point.values]
        y = [math.log(v / (1 - v)) for point in curve for v in np.clip(point.values, 0.01, 0.99)]
        lines.append(np.polyfit(x, y, 1))
    means = [[np.mean(point.values) for point in curve] for curve in (long, short)]
    level = (max(min(m) for m in means) + min(max(m) for m in means)) / 2
    u_long, u_short = ((math.log(level / (1 - level)) - start) / slope for slope, start in lines)
    return 2 ** (u_short - u_long)


def test_straight_pieces_scatter_no_more_than_a_logistic_curve_and_never_flatter():
    """The truth is logistic up to 100 %, or up to 60 %; the curves are a doubling apart."""
    generator, u = np.random.default_rng(6), np.log2(SIZES)
    bias, scatter = [], []
    for top in (1.0, 0.6):
        for centre in (1, 2):
            errors = []
            for _ in range(80):
                long, short = (
                    points(SIZES, logistic(u - centre + ahead, 1.2, top), spread=0.02, generator=generator)
                    for ahead in (1, 0)
                )
                straight = equivalent_scale(long, short, draws=2).value
                errors.append([math.log2(straight) - 1, math.log2(logistic_factor(long, short)) - 1])
            bias.append(np.mean(errors, axis=0))
            scatter.append(np.std(errors, axis=0))
    straight, curved = np.transpose(bias)
    assert straight.min() > -0.1
    assert straight.max() < 0
    assert curved.min() < -0.07
    assert curved.max() > 0.04
    assert (np.array(scatter)[:, 0] < 1.2 * np.array(scatter)[:, 1]).all()


def test_mistakes_that_cancel_a_gain():
    noisy = points((0, 0.1, 0.2, 0.4), (0.9, 0.8, 0.7, 0.5), spread=0.01)
    found = break_even(noisy, (0.74, 0.75, 0.76))
    assert found.value == pytest.approx(0.15)
    assert 0.1 < found.low < 0.15 < found.high < 0.2
    assert (found.largest, found.rival) == (0.4, pytest.approx(0.75))
    beyond = break_even(noisy, (0.29, 0.3, 0.31))
    assert (beyond.value, beyond.low, beyond.high) == (math.inf, math.inf, math.inf)
    none = break_even(noisy, (0.95, 0.96, 0.97))
    assert (none.value, none.low, none.high) == (0, 0, 0)
    hardly = break_even(noisy, (0.48, 0.51, 0.54))
    assert 0.3 < hardly.low < hardly.value < 0.4
    assert hardly.high == math.inf
    assert math.isnan(break_even(points((0, 0.5), (0.9, 0.1), seeds=1), (0.5,)).low)


@pytest.mark.parametrize("spread", [(0.03,) * 4, (*UNEQUAL, 0.1), (0.1, *UNEQUAL[::-1])])
def test_a_known_break_even_is_within_nineteen_of_twenty_intervals(spread):
    generator, held, trials = np.random.default_rng(7), 0, 300
    shares = (0.0, 0.1, 0.2, 0.4)
    for trial in range(trials):
        noisy = points(shares, [0.9 - s for s in shares], spread=spread, generator=generator)
        (rival,) = points((0,), (0.75,), spread=spread[:1], generator=generator)
        found = break_even(noisy, rival.values, draws=300, seed=trial)
        held += found.low <= 0.15 <= found.high
    assert held > 0.95 * trials


def test_a_place_of_one_seed_borrows_the_spread_of_others():
    alone = [Point(x=8.0, values=(0.5,)), Point(x=16.0, values=(0.6, 0.64, 0.7))]
    agreed = [Point(x=8.0, values=(0.5, 0.5)), alone[1]]
    borrowed, own = band(alone), band(agreed)
    assert borrowed.low[0] < 0.45
    assert borrowed.high[0] > 0.55
    assert own.low[0] == own.high[0] == pytest.approx(0.5)


def test_the_band_of_a_place_is_a_t_interval():
    values = (0.5, 0.56, 0.61)
    drawn = band([Point(x=8.0, values=values)])
    error = np.std(values, ddof=1) / math.sqrt(3)
    reach = 4.302653 * error  # t of two degrees of freedom
    assert drawn.x == pytest.approx([8.0] * 101)
    assert drawn.y == pytest.approx([np.mean(values)] * 101)
    assert drawn.low[0] == pytest.approx(np.mean(values) - reach, abs=0.15 * reach)
    assert drawn.high[0] == pytest.approx(np.mean(values) + reach, abs=0.15 * reach)


def test_the_curve_goes_through_what_was_measured():
    rising = band(points((1, 4, 16), (0.2, 0.5, 0.6)))
    assert np.interp(np.log2([1, 4, 16]), np.log2(rising.x), rising.y) == pytest.approx([0.2, 0.5, 0.6], abs=2e-3)
    assert (rising.low == rising.y).all()
    falling = band(points((0, 0.5, 1), (0.9, 0.5, 0.6), spread=0.01), falling=True, logarithmic=False)
    assert falling.y[-1] == pytest.approx(0.55)
    assert (falling.low <= falling.y + 1e-9).all()
    assert (falling.high >= falling.y - 1e-9).all()
