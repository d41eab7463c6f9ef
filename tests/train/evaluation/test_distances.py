"""The two distances against their definitions, and against distributions whose distance is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg

from lens_train.evaluation.distances import frechet_distance, kernel_distance


def exactly(mean, covariance, number, seed):
    """A sample whose mean and covariance are just these."""
    values = np.random.default_rng(seed).normal(size=(number, len(mean)))
    values -= values.mean(0)
    whitened = values @ np.linalg.inv(np.linalg.cholesky(np.cov(values.T))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def random_covariance(size, seed):
    factor = np.random.default_rng(seed).normal(size=(size, size + 2))
    return factor @ factor.T / size


# --- Fréchet ---


def test_frechet_of_normal_distributions_in_closed_form():
    """Independent features: the squared differences of means and of standard deviations."""
    means, deviations = np.array([[0.0, 1, -2], [3, 1, 0]]), np.array([[1.0, 2, 0.5], [2, 2, 3]])
    x, y = (exactly(m, np.diag(s**2), 50, seed) for seed, (m, s) in enumerate(zip(means, deviations, strict=True)))
    assert frechet_distance(x, y).value == pytest.approx(9 + 0 + 4 + 1 + 0 + 6.25)


@pytest.mark.parametrize(("n", "m", "size"), [(40, 60, 5), (300, 200, 24), (9, 12, 30)])
def test_frechet_against_the_matrix_square_root(n, m, size):
    """The formula with scipy's `sqrtm`, also where features outnumber pictures."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, size)) @ random_covariance(size, 1) + 0.3
    y = rng.normal(size=(m, size)) @ random_covariance(size, 2)
    ridge = 1e-9 * np.eye(size)  # sqrtm is not defined at singular products; this moves the result by far less
    a, b = np.cov(x.T) + ridge, np.cov(y.T) + ridge
    root = scipy.linalg.sqrtm(a @ b).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(x, y).value == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(y, x).value == pytest.approx(frechet_distance(x, y).value)


def test_frechet_of_a_set_with_itself():
    x = np.random.default_rng(0).normal(size=(30, 6))
    assert frechet_distance(x, x[::-1]).value == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + np.array([2, 0, 0, 0, 0, 1])).value == pytest.approx(5)
    found = frechet_distance(x, x)
    assert (found.low, found.high) == (None, None)


# --- KID ---


def kernel(a, b):
    return (float(np.dot(a, b)) / len(a) + 1) ** 3


def by_definition(x, y):
    """Sums over pairs, one by one."""
    xx = [kernel(a, b) for a, b in itertools.permutations(x, 2)]
    yy = [kernel(a, b) for a, b in itertools.permutations(y, 2)]
    xy = [kernel(a, b) for a, b in itertools.product(x, y)]
    return np.mean(xx) + np.mean(yy) - 2 * np.mean(xy)


def test_kid_by_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 4)), rng.normal(0.4, 1.3, size=(14, 4))
    assert kernel_distance(x, y).value == pytest.approx(by_definition(x, y))


def test_kid_of_two_points():
    a, b = np.array([1.0, 0.0, 2.0]), np.array([0.0, 1.0, 1.0])
    x, y = np.tile(a, (8, 1)), np.tile(b, (10, 1))
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert (found.low, found.high) == pytest.approx((found.value, found.value))


def test_kid_is_unbiased():
    """Over many pairs of small sets of one distribution its mean is 0, since no picture is paired with itself."""
    rng = np.random.default_rng(1)
    unbiased, biased = [], []
    for _ in range(120):
        x, y = rng.normal(size=(2, 10, 3))
        unbiased.append(kernel_distance(x, y).value)
        k = [(a @ b.T / 3 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
        biased.append(k[0].mean() + k[1].mean() - 2 * k[2].mean())
    error = np.std(unbiased) / np.sqrt(120)
    assert abs(np.mean(unbiased)) < 3 * error
    assert np.mean(biased) > 10 * error


def test_the_interval_of_kid_covers_the_truth():
    """Of one feature, x ~ N(0, 1) and y ~ N(1, 1), the expectation of (xy + 1)³ is known from moments."""

    def expected(m, n):
        second, third = ((v * v + 1) for v in (m, n)), ((v**3 + 3 * v) for v in (m, n))
        return np.prod(list(third)) + 3 * np.prod(list(second)) + 3 * m * n + 1

    truth = expected(0, 0) + expected(1, 1) - 2 * expected(0, 1)
    rng = np.random.default_rng(2)
    covered, values = 0, []
    for number in range(100):
        found = kernel_distance(rng.normal(0, 1, (120, 1)), rng.normal(1, 1, (120, 1)), seed=number)
        covered += found.low <= truth <= found.high
        values.append(found.value)
    assert np.mean(values) == pytest.approx(truth, abs=3 * np.std(values) / 10)
    assert 88 <= covered <= 99


def test_the_interval_of_kid_is_as_wide_as_kid_varies():
    """Against 1,500 pairs of sets, drawn anew: of four features between 0 and 1, as pixels are."""
    rng = np.random.default_rng(4)

    def pair():
        return [1 / (1 + np.exp(-rng.normal(mean, 1, (100, 4)))) for mean in (0, 1)]

    values = []
    for _ in range(1500):
        x, y = pair()
        xx, yy, xy = ((a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = sum((square.sum() - np.trace(square)) / (100 * 99) for square in (xx, yy))
        values.append(within - 2 * xy.mean())
    found = [kernel_distance(*pair(), seed=number) for number in range(40)]
    half = np.mean([one.high - one.value for one in found])
    assert half == pytest.approx(1.96 * np.std(values), rel=0.07)


def test_the_interval_of_kid_is_repeatable_and_shrinks():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, (400, 8)), rng.normal(0.5, 1, (400, 8))
    assert kernel_distance(x, y, seed=4) == kernel_distance(x, y, seed=4)
    large, small = kernel_distance(x, y), kernel_distance(x[:100], y[:100])
    ratio = (small.high - small.low) / (large.high - large.low)
    assert 1.4 < ratio < 2.8  # as the square root of four times as many
    same = kernel_distance(x, rng.normal(0, 1, (400, 8)))
    assert same.low < 0 < same.high
