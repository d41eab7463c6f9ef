"""What seeds and prompts allow to say: means, differences, their 95 % intervals, and p values for many skills at once.

The unit is the **seed**: a training run is what would be done again. Accuracies of a few seeds get a t interval, which
knows how little three of them tell. All arms and seeds answer the same prompts, so the intervals speak for these
prompts; other prompts of the same kind would add a scatter of their own.

A bootstrap of seeds and then prompts was weighed and left out. Three seeds allow ten different samples with
replacement, so that its intervals hold what they promise in about three cases of four instead of nineteen of twenty
(a test shows it), and the prompts, being the same ones everywhere, are no second sample to draw from.

    accuracy({0: Count(correct=71, n=100), 1: Count(correct=66, n=100), 2: Count(correct=70, n=100)})
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from scipy import stats

from lens_core.intervals import wilson_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["LEVEL", "SEEDS_TO_CLAIM", "Count", "Difference", "Estimate", "accuracy", "difference", "holm", "mean"]

LEVEL = 0.95
SEEDS_TO_CLAIM = 3
"""With fewer seeds an arm is exploratory: its numbers are told, and nothing is claimed from them."""

_SAME = 1e-9  # spreads below are rounding: the seeds agree

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class Count:
    """Right answers of one seed; fractions where several wordings of one prompt count as one."""

    correct: float
    n: float

    @property
    def share(self) -> float:
        """The accuracy, 0…1."""
        return self.correct / self.n


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval.

    Args:
        value: the mean over seeds.
        low: lower end.
        high: upper end.
        seeds: how many.
        basis: what the interval is over: "seeds" (t), or "prompts" where one seed, or no spread, leaves no other.
    """

    value: float
    low: float
    high: float
    seeds: int
    basis: Literal["seeds", "prompts"]

    @property
    def exploratory(self) -> bool:
        """Whether there are too few seeds to claim anything."""
        return self.seeds < SEEDS_TO_CLAIM


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm's accuracy minus the baseline's, with its 95 % interval.

    Args:
        value: difference of the means, -1…1.
        low: lower end.
        high: upper end.
        p: two-sided, of no difference; None where only prompts stand behind the interval.
        basis: "welch" over seeds, or "prompts" (Newcombe) where a seed stands alone or the seeds agree to the digit.
    """

    value: float
    low: float
    high: float
    p: float | None
    basis: Literal["welch", "prompts"]


def mean(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean and t interval; the interval of a single value is the whole line.

    Args:
        values: one of each seed, at least one.
    """
    found = np.array(list(values), dtype=float)
    centre = float(found.mean())
    if len(found) < 2:
        return centre, -math.inf, math.inf
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, len(found) - 1) * stats.sem(found))
    return centre, centre - reach, centre + reach


def accuracy(counts: Mapping[int, Count]) -> Estimate:
    """An arm's accuracy: the mean over seeds with its t interval, cut at 0 and 1.

    With one seed, or where all seeds agree to the digit (0 % three times is no proof of 0 %), it is Wilson's interval
    over the prompts.

    Args:
        counts: by seed, at least one.
    """
    shares = [count.share for count in counts.values()]
    centre, low, high = mean(shares)
    if len(shares) > 1 and max(shares) - min(shares) > _SAME:
        return Estimate(value=centre, low=max(0.0, low), high=min(1.0, high), seeds=len(shares), basis="seeds")
    low, high = _wilson(counts)
    return Estimate(value=centre, low=low, high=high, seeds=len(shares), basis="prompts")


def difference(arm: Mapping[int, Count], baseline: Mapping[int, Count]) -> Difference:
    """An arm's accuracy minus the baseline's: Welch's t over seeds, which lets either side have luck of its own size.

    Arms are far from alike in that: one that is always wrong has no luck at all, one in the middle of learning a lot.
    So the spread is never borrowed from other arms. Nor are equal seeds taken for pairs: they give both sides the same
    start and order, but what that has in common was too little, in runs of ours, to make up for the degrees of freedom
    that a paired test of three seeds gives away.

    Where a side has a single seed, or the seeds show no spread at all, there is only the scatter of prompts:
    Newcombe's interval (Statistics in Medicine 17, 1998, method 10), and no p value.

    Args:
        arm: counts by seed, at least one.
        baseline: likewise.
    """
    shares, others = ([count.share for count in side.values()] for side in (arm, baseline))
    value = fmean(shares) - fmean(others)
    if min(len(shares), len(others)) < 2 or np.ptp(shares) + np.ptp(others) <= _SAME:
        return _by_prompts(value, arm, baseline)
    # Scipy's own test divides by zero where the means are equal.
    own, its = (float(np.var(side, ddof=1)) / len(side) for side in (shares, others))
    freedom = (own + its) ** 2 / (own**2 / (len(shares) - 1) + its**2 / (len(others) - 1))
    error = math.sqrt(own + its)
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    return Difference(value=value, low=max(-1.0, value - reach), high=min(1.0, value + reach), p=p, basis="welch")


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """p values that may be read together (Holm 1979): with none of the effects real, one below 0.05 comes up in at
    most 5 % of all such sets, however the skills hang together.

    Args:
        p_values: by skill.
    """
    adjusted, worst = {}, 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p))
        adjusted[key] = worst
    return {key: adjusted[key] for key in p_values}


def _by_prompts(value: float, arm: Mapping[int, Count], baseline: Mapping[int, Count]) -> Difference:
    (low, high), (other_low, other_high) = _wilson(arm), _wilson(baseline)
    share, other = (fmean(count.share for count in side.values()) for side in (arm, baseline))
    return Difference(
        value=value,
        low=value - math.hypot(share - low, other_high - other),
        high=value + math.hypot(high - share, other - other_low),
        p=None,
        basis="prompts",
    )


def _wilson(counts: Mapping[int, Count]) -> tuple[float, float]:
    # The seeds answer the same prompts: several seeds do not make several times as many of them.
    n = fmean(count.n for count in counts.values())
    return wilson_interval(min(n, n * fmean(count.share for count in counts.values())), n)
