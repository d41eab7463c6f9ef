"""When a backlog has room, against a level that is followed in small steps."""

from __future__ import annotations

import math
import random

import pytest

from lens_serve.admission.backlog import Coming, Pace, earliest

STEP = 0.125


def follow(level, rate, arrivals, ticks):
    """The levels that each arrival finds, in steps; arrivals are (tick, cost), in order."""
    found = []
    waiting = list(arrivals)
    for tick in range(ticks):
        while waiting and waiting[0][0] <= tick:
            found.append(level)
            level += waiting.pop(0)[1]
        level = max(0.0, level - rate * STEP)
    return found


def by_trying(level, rate, coming, cost, headroom, ticks):
    """The first tick at which it may come, by trying all; the arrivals of a tick come in any order.

    Nobody may find more than its bound, unless it would anyway, and no less.
    """
    arrivals = [(at, their_cost) for at, their_cost, _ in coming]
    alone = follow(level, rate, arrivals, ticks)
    bounds = [max(bound, anyway) for (_, _, bound), anyway in zip(coming, alone, strict=True)]
    for tick in range(ticks):
        for place in range(len(coming) + 1):
            if (place and coming[place - 1][0] > tick) or (place < len(coming) and coming[place][0] < tick):
                continue
            found = follow(level, rate, [*arrivals[:place], (tick, cost), *arrivals[place:]], ticks)
            if found.pop(place) <= headroom and all(map(float.__le__, found, bounds)):
                return tick
    return None


def test_the_first_moment_is_the_one_that_trying_all_finds():
    rng = random.Random(5)
    late = 0
    for _ in range(150):
        rate = rng.choice([0.5, 1.0, 2.0])
        level = rng.randrange(24) / 4
        times = sorted(rng.randrange(40) for _ in range(rng.randrange(6)))
        coming = [(at, rng.randrange(1, 9) / 4, rng.choice([1.0, 2.0, 5.0, math.inf])) for at in times]
        cost, headroom = rng.randrange(1, 9) / 4, rng.choice([0.0, 1.0, 3.0])
        told = [Coming(100 + at * STEP, their_cost, bound) for at, their_cost, bound in coming]
        at = earliest(100.0, level, rate, told, cost_s=cost, headroom_s=headroom)
        assert math.ceil((at - 100) / STEP) == by_trying(level, rate, coming, cost, headroom, 400)
        late += at > 100
    assert 30 < late < 150


def test_what_should_have_come_counts_as_coming_now():
    told = [Coming(99.0, 2.0, 3.0), Coming(99.5, 2.0, 5.0)]
    ask = {"cost_s": 1.0, "headroom_s": 4.0}
    assert earliest(100.0, 2.0, 1.0, told, **ask) == 100  # it finds 2, and they then find 3 and 5
    assert earliest(100.0, 2.5, 1.0, told, **ask) == 102.5  # after them, at 4


def test_not_before_the_start():
    assert earliest(100.0, 0.0, 1.0, [], cost_s=1.0, headroom_s=1.0, start=103.0) == 103
    told = [Coming(103.5, 1.0, 0.0)]
    assert earliest(100.0, 0.0, 1.0, told, cost_s=1.0, headroom_s=1.0, start=103.0) == 103.5


def test_the_pace_is_what_is_done_in_a_second():
    pace = Pace()
    level = 6.0
    for quarter in range(400):
        pace.observe(quarter / 4, level)
        level -= 0.25 * 1.6
        if level < 3:
            pace.added(4.0)
            level += 4.0
    assert pace.value == pytest.approx(1.6, abs=0.01)


def test_idle_time_and_what_was_given_up_say_nothing_of_the_pace():
    pace = Pace()
    for second in range(100):
        pace.observe(second, 0.5 if second % 3 else 0.0)
    assert pace.value == 1
    pace.observe(200, 9.0)
    pace.begin_anew()  # 8 seconds of work were given up
    pace.observe(201, 1.0)
    pace.observe(204, 1.0)
    assert pace.value == 1


def test_the_pace_has_bounds():
    pace = Pace()
    for second in range(0, 500, 5):
        pace.observe(second, 5.0)
    assert pace.value == 0.1
