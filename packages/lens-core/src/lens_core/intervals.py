"""Wilson's interval for a share, also of trials that come in clusters or are sampled at different rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Z_95", "clustered_interval", "stratified_interval", "wilson_interval"]

Z_95 = 1.959963984540054
"""The two-sided 95 % quantile of the normal distribution."""


def wilson_interval(successes: float, trials: float, *, z: float = Z_95) -> tuple[float, float]:
    """The score interval of E. B. Wilson (JASA 22, 1927); it stays honest near 0 and 1 and for few trials.

    Args:
        successes: how many; a fraction where numbers are effective ones.
        trials: how many, likewise; without any, all is possible.
        z: quantile of the normal distribution.

    Raises:
        ValueError: more successes than trials, or fewer than none.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is no share")
    if trials == 0:
        return 0.0, 1.0
    share, scale = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At the ends the formula gives exactly 0 and 1; rounding must not put the share outside.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def clustered_interval(clusters: Sequence[tuple[int, int]], *, z: float = Z_95) -> tuple[float, float]:
    """Wilson's interval for a share of units that were drawn in clusters, such as sentences by captions.

    Sentences of one caption are right and wrong together, so that they count for less than as many drawn one by one:
    the number of units is divided by the design effect, the ratio of the share's variance between clusters to that
    of independent units (never taken to be below 1).

    Args:
        clusters: successes and units of each cluster.
        z: quantile of the normal distribution.
    """
    clusters = [(successes, units) for successes, units in clusters if units]
    total, number = sum(units for _, units in clusters), len(clusters)
    if number < 2:
        return wilson_interval(sum(successes for successes, _ in clusters), total, z=z) if number else (0.0, 1.0)
    share, variance = _share_and_variance(clusters)
    alone = share * (1 - share) / total
    effect = max(1.0, variance / alone) if alone else 1.0
    return wilson_interval(share * total / effect, total / effect, z=z)


def stratified_interval(
    strata: Sequence[tuple[int, Sequence[tuple[int, int]]]], *, z: float = Z_95
) -> tuple[float, float, float]:
    """Share and interval over strata of different sizes, sampled at different rates.

    Args:
        strata: how many clusters there are in each, and successes and units of those that were drawn.
        z: quantile of the normal distribution.

    Returns:
        the share, each stratum counting by its size, and the interval's ends.
    """
    drawn = [(size, [pair for pair in clusters if pair[1]]) for size, clusters in strata]
    drawn = [(size, clusters) for size, clusters in drawn if clusters]
    everything = sum(size for size, _ in drawn)
    if not everything:
        return 0.0, 0.0, 1.0
    share = variance = 0.0
    for size, clusters in drawn:
        here, spread = _share_and_variance(clusters)
        share += size / everything * here
        # A stratum that was drawn whole is known and adds nothing.
        variance += (size / everything) ** 2 * spread * max(0.0, 1 - len(clusters) / size)
    units = sum(number for _, clusters in drawn for _, number in clusters)
    # Nothing seen to vary proves nothing; the units are then taken as independent.
    share = min(1.0, share)  # rounding
    effective = share * (1 - share) / variance if variance > 0 else float(units)
    return share, *wilson_interval(share * effective, effective, z=z)


def _share_and_variance(clusters: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """The share over all units, and the variance of this ratio between clusters."""
    total, number = sum(units for _, units in clusters), len(clusters)
    share = sum(successes for successes, _ in clusters) / total
    if number < 2:
        return share, share * (1 - share)
    spread = sum((good - share * units) ** 2 for good, units in clusters) / total**2
    return share, number / (number - 1) * spread
