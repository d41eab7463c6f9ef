"""What a better caption is worth in size: how far a curve of accuracy must be moved sideways to lie on another.

A **curve** is accuracy over the logarithm of a scale (parameters, training images), measured at three or more places
with a few seeds each. Between the places it is a straight line, and it never falls: isotonic regression of the means.
That is all that is assumed. A logistic curve, the usual second choice, scatters as much, and errs to either side where
accuracy levels off below 100 %, which nobody knows beforehand; straight pieces err by less, and towards too small a
factor, since they lie below a curve that flattens (a test shows both).

The **factor** says how many times as large the rival must be to be as accurate. It is taken only at the levels of
accuracy that both curves reach between the places that were measured, as the mean of its logarithm over these levels.
Nothing is extrapolated: where one curve lies wholly above the other, all that follows is "more than" the range, and
not even that where the lower one is not sure to grow, since then its size made no difference that could be seen.

The **interval** comes from a bootstrap over seeds: all means are drawn anew, 20,000 times, each with the spread that
own seeds show, and the whole calculation is done again. The spread is drawn as well (it was found from a few runs),
which makes the interval of a single mean a t interval. Drawing three seeds from three with replacement would be far too
sure of itself, and so would be one spread for all places: seeds lie apart where a skill is being learnt, and agree
before and after. Three seeds a place make such intervals rather too wide than too narrow. Draws in which the curves do
not meet count as beyond the range on their side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Band", "BreakEven", "Factor", "Point", "band", "break_even", "equivalent_scale", "monotone"]

_LEVELS = (np.arange(64) + 0.5) / 64  # where the factor is read, as shares of the common range of accuracy
_ENDS = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place on an axis: its size or share, and the accuracy that each seed came to."""

    x: float
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Factor:
    """How many times as large the rival must be.

    Args:
        value: the factor; infinite (0) where the curve lies above (below) the rival's wherever it was measured, NaN
            where one that had to grow to reach the other is not sure to, so that no size can stand for another.
        low: lower end of the 95 % interval; 0 where it is below `smallest`. NaN without a second seed anywhere.
        high: upper end; infinite where it is beyond `largest`.
        smallest: the smallest factor that this range of sizes can show.
        largest: the largest.
        levels: the accuracies between which it was read; None where there is none in common.
    """

    value: float
    low: float
    high: float
    smallest: float
    largest: float
    levels: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """How many wrong facts cancel the gain over a rival.

    Args:
        value: share of facts; infinite where the gain outlasts the largest share measured, 0 where there is none.
        low: lower end of the 95 % interval. NaN without a second seed anywhere.
        high: upper end; infinite where it is beyond `largest`.
        largest: the largest share measured.
        rival: the rival's accuracy.
    """

    value: float
    low: float
    high: float
    largest: float
    rival: float


@dataclass(frozen=True, kw_only=True)
class Band:
    """A curve to draw: `y` at `x`, and the 95 % interval around it (as wide as the curve where there is none)."""

    x: Floats
    y: Floats
    low: Floats
    high: Floats


def equivalent_scale(long: Sequence[Point], short: Sequence[Point], *, draws: int = 20_000, seed: int = 0) -> Factor:
    """The factor between two curves.

    Args:
        long: of the better captions.
        short: of the rival.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    long, short = _in_order(long), _in_order(short)
    u_long, u_short = (np.log2([point.x for point in side]) for side in (long, short))
    v_long, v_short = (monotone(_means(side)[None]) for side in (long, short))
    shift = float(_shift(u_long, v_long, u_short, v_short)[0])
    smallest, largest = 2.0 ** (u_short[0] - u_long[-1]), 2.0 ** (u_short[-1] - u_long[0])
    low, high = math.nan, math.nan
    drawn, count = _redraw([*long, *short], draws, seed), len(long)
    if math.isinf(shift):
        below = slice(count, None) if shift > 0 else slice(count)
        means = _means([*long, *short])[None] if drawn is None else drawn
        gains = means[:, below][:, -1] - means[:, below][:, 0]
        shift = shift if np.quantile(gains, _ENDS[0]) > 0 else math.nan
    if drawn is not None:
        shifts = _shift(u_long, monotone(drawn[:, :count]), u_short, monotone(drawn[:, count:]))
        low, high = (0.0, math.inf) if math.isnan(shift) else (2.0**end for end in _interval(shifts))
    levels = (max(v_long[0, 0], v_short[0, 0]), min(v_long[0, -1], v_short[0, -1]))
    return Factor(
        value=2.0**shift,
        low=low,
        high=high,
        smallest=float(smallest),
        largest=float(largest),
        levels=(float(levels[0]), float(levels[1])) if math.isfinite(shift) else None,
    )


def break_even(noisy: Sequence[Point], rival: Sequence[float], *, draws: int = 20_000, seed: int = 0) -> BreakEven:
    """The share of wrong facts at which the accuracy has fallen to that of a rival; accuracy never rises with it.

    Args:
        noisy: by share, from 0 on.
        rival: its accuracy, of each seed.
        draws: of the bootstrap.
        seed: of the bootstrap.
    """
    noisy = _in_order(noisy)
    shares = np.array([point.x for point in noisy])
    value = float(_crossing(shares, _means(noisy)[None], np.array([fmean(rival)]))[0])
    low, high = math.nan, math.nan
    drawn = _redraw([*noisy, Point(x=0.0, values=tuple(rival))], draws, seed)
    if drawn is not None:
        low, high = _interval(_crossing(shares, drawn[:, :-1], drawn[:, -1]))
    return BreakEven(value=value, low=low, high=high, largest=float(shares[-1]), rival=fmean(rival))


def band(points: Sequence[Point], *, falling: bool = False, logarithmic: bool = True, seed: int = 0) -> Band:
    """The curve through points, at a hundred places, with its interval from the same bootstrap.

    Args:
        points: one or more.
        falling: whether it never rises, and not never falls.
        logarithmic: whether it is straight over log(x), and not over x.
        seed: of the bootstrap.
    """
    points, sign = _in_order(points), -1.0 if falling else 1.0
    places = np.array([point.x for point in points])
    u = np.log2(places) if logarithmic else places
    grid = np.linspace(u[0], u[-1], 101)
    y = np.interp(grid, u, sign * monotone(sign * _means(points)[None])[0])
    drawn = _redraw(points, 4000, seed)
    low = high = y
    if drawn is not None:
        curves = [np.interp(grid, u, curve) for curve in sign * monotone(sign * drawn)]
        low, high = np.quantile(curves, _ENDS, axis=0)
    return Band(x=2.0**grid if logarithmic else grid, y=y, low=low, high=high)


def monotone(values: Floats) -> Floats:
    """Isotonic regression of every row: the closest row that never falls.

    Args:
        values: [rows, places].
    """
    # The min-max formula: the largest, over beginnings up to here, of the smallest mean up to an end from here on.
    places = values.shape[1]
    sums = np.concatenate([np.zeros((len(values), 1)), values.cumsum(axis=1)], axis=1)
    fitted = np.empty_like(values)
    for here in range(places):
        ends = np.arange(here + 1, places + 1)
        smallest = [((sums[:, ends] - sums[:, [begin]]) / (ends - begin)).min(axis=1) for begin in range(here + 1)]
        fitted[:, here] = np.max(smallest, axis=0)
    return np.maximum.accumulate(fitted, axis=1)  # rounding must not make a step down of a flat part


def _shift(u_long: Floats, v_long: Floats, u_short: Floats, v_short: Floats) -> Floats:
    """log2 of the factor, a number a row: mean over the levels that both curves reach."""
    low = np.maximum(v_long[:, 0], v_short[:, 0])
    high = np.minimum(v_long[:, -1], v_short[:, -1])
    levels = low[:, None] + (high - low)[:, None] * _LEVELS
    shift = (_place(u_short, v_short, levels) - _place(u_long, v_long, levels)).mean(axis=1)
    shift = np.where(high > low, shift, np.nan)
    shift = np.where(v_long[:, 0] > v_short[:, -1], np.inf, shift)
    return np.where(v_short[:, 0] > v_long[:, -1], -np.inf, shift)


def _crossing(shares: Floats, values: Floats, level: Floats) -> Floats:
    """Where falling curves reach a level, a number a row; 0 for those that start there, infinite for those above it."""
    falling = -monotone(-values)
    where = _place(shares, -falling, -level[:, None])[:, 0]
    where = np.where(falling[:, -1] > level, np.inf, where)
    return np.where(falling[:, 0] <= level, 0.0, where)


def _place(u: Floats, v: Floats, levels: Floats) -> Floats:
    """Where rising curves `v` over `u` reach levels, [rows, levels]; the middle of a flat part."""
    below = (v[:, None, :] < levels[:, :, None]).sum(axis=-1)
    up_to = (v[:, None, :] <= levels[:, :, None]).sum(axis=-1)
    return 0.5 * (_between(u, v, levels, below) + _between(u, v, levels, up_to))


def _between(u: Floats, v: Floats, levels: Floats, number: NDArray[np.int_]) -> Floats:
    """Between place number - 1 and place number; at the ends, the end."""
    left, right = np.clip(number - 1, 0, len(u) - 1), np.clip(number, 0, len(u) - 1)
    v_left, v_right = (np.take_along_axis(v, index, axis=1) for index in (left, right))
    rise = v_right - v_left
    share = np.divide(levels - v_left, rise, out=np.zeros_like(levels), where=rise > 0)
    return u[left] + np.clip(share, 0.0, 1.0) * (u[right] - u[left])


def _redraw(points: Sequence[Point], draws: int, seed: int) -> Floats | None:
    """Means as other seeds might have given them, [draws, points]; None where no place has a second seed.

    A place of one seed borrows the spread of all others.
    """
    means = _means(points)
    freedom = np.array([len(point.values) - 1 for point in points])
    squares = np.array(
        [sum((value - mean) ** 2 for value in point.values) for point, mean in zip(points, means, strict=True)]
    )
    if freedom.sum() == 0 or squares.sum() < 1e-12:  # below is rounding: the seeds agree
        return None
    alone = freedom == 0
    squares[alone], counted = squares.sum(), np.where(alone, freedom.sum(), freedom)
    generator = np.random.default_rng(seed)
    spread = np.sqrt(squares / generator.chisquare(counted, (draws, len(points))))
    drawn = means + spread * generator.standard_normal(spread.shape) / np.sqrt(freedom + 1)
    return np.clip(drawn, 0.0, 1.0)


def _interval(drawn: Floats) -> tuple[float, float]:
    # A draw that decides nothing (a curve without a slope) counts against either end.
    low, high = np.where(np.isnan(drawn), -np.inf, drawn), np.where(np.isnan(drawn), np.inf, drawn)
    return (
        float(np.quantile(low, _ENDS[0], method="inverted_cdf")),
        float(np.quantile(high, _ENDS[1], method="inverted_cdf")),
    )


def _means(points: Sequence[Point]) -> Floats:
    return np.array([fmean(point.values) for point in points])


def _in_order(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.x)
