"""When what waits will be done, and where there is room for more.

A backlog is a level of predicted seconds of work that drains at a rate, and rises whenever somebody comes who was told
to. Both are predictions, made anew from what is measured at every request; so errors do not add up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Coming", "Pace", "earliest"]

_TOLERANCE_S = 1e-6


class Coming(NamedTuple):
    """Work that was told to come at a time, and the highest level that it may find then."""

    at: float
    cost_s: float
    headroom_s: float = math.inf


def earliest(
    now: float,
    level_s: float,
    rate: float,
    coming: Sequence[Coming],
    *,
    cost_s: float,
    headroom_s: float,
    start: float | None = None,
) -> float:
    """The first moment at which work may come that finds no more than `headroom_s` and spoils nothing for the others.

    Args:
        now: the moment of `level_s`.
        level_s: seconds of work.
        rate: at which it drains; 1 where predictions are right and one thing is done after the other.
        coming: what was told to come, in the order of its times; those that are past count as now.
        cost_s: of the work.
        headroom_s: the highest level that it may find.
        start: not before.
    """
    # The way of the level without this work: where each gap between two comings begins, its level, and for how many
    # seconds of work there was nothing to do until then.
    gaps = [(now, level_s, 0.0)]
    bounds: list[float] = []
    for told, their_cost_s, their_headroom_s in coming:
        since, level, idle = gaps[-1]
        at = max(told, now)
        drained = rate * (at - since)
        idle += max(0.0, drained - level)
        level = max(0.0, level - drained)
        # Work that comes earlier raises this level, but for what fits into idle time between the two.
        bounds.append(idle + max(0.0, their_headroom_s - level))
        gaps.append((at, level + their_cost_s, idle))
    bounds.append(math.inf)
    for index in range(len(bounds) - 2, -1, -1):
        bounds[index] = min(bounds[index], bounds[index + 1])
    ends = [since for since, _, _ in gaps[1:]] + [math.inf]
    for (since, level, idle), end, bound in zip(gaps, ends, bounds, strict=True):
        at = max(since, start or since, since + (level - headroom_s) / rate)
        if at <= end and idle + max(0.0, rate * (at - since) - level) + cost_s <= bound + _TOLERANCE_S:
            return at
    raise AssertionError("after everything there is room")


class Pace:
    """Predicted seconds of work that are done in a second while there is always something to do.

    More than 1 where work shares the device well, less where something beside it takes time.
    """

    def __init__(self) -> None:
        self.value = 1.0
        self._began: tuple[float, float] | None = None
        self._added_s = 0.0

    def observe(self, now: float, level_s: float) -> None:
        """See how much there is to do; often."""
        if self._began is None or level_s <= 0:
            self.begin_anew()
            self._began = (now, level_s) if level_s > 0 else None
        elif now - self._began[0] >= _WINDOW_S:
            measured = (self._began[1] + self._added_s - level_s) / (now - self._began[0])
            self.value = min(max(self.value + _GAIN * (measured - self.value), _SLOWEST), _FASTEST)
            self._began, self._added_s = (now, level_s), 0.0

    def added(self, work_s: float) -> None:
        """There is more to do."""
        self._added_s += work_s

    def begin_anew(self) -> None:
        """Something was taken away that was not done."""
        self._began, self._added_s = None, 0.0


_WINDOW_S = 4.0
_GAIN = 0.25
_SLOWEST, _FASTEST = 0.1, 10.0
