"""The limiter, on a clock of its own and against the server's limits."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from lens_caption.engine.limiter import Limiter, parse_duration


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def times(limiter, clock, tokens, count):
    """When each of `count` requests may go."""
    gone = []
    for _ in range(count):
        clock.now += limiter.wait()
        limiter.take(tokens)
        gone.append(clock.now)
    return gone


def test_requests_go_at_the_pace_of_the_limit_from_the_start():
    clock = Clock()
    gone = times(Limiter(rpm=600, now=clock), clock, 1, 200)
    assert gone[0] == 0  # the first needs not wait
    steps = [later - earlier for earlier, later in itertools.pairwise(gone)]
    assert all(step == pytest.approx(0.1 / 0.985, rel=1e-6) for step in steps)


def test_tokens_bind_if_they_are_scarcer():
    clock = Clock()
    gone = times(Limiter(rpm=600, tpm=60_000, now=clock), clock, 1000, 50)
    assert gone[-1] == pytest.approx(49 / 0.985)


@pytest.mark.parametrize("tokens", [1, 700, 50_000])
def test_no_minute_holds_more_than_the_limit(tokens):
    clock = Clock()
    gone = times(Limiter(tpm=100_000, rpm=3000, now=clock), clock, tokens, 400)
    for start in gone:
        within = sum(start <= moment < start + 60 for moment in gone)
        assert within <= 3000
        assert (within - 1) * tokens <= 100_000  # the last one goes into debt


def test_an_idle_minute_is_no_credit():
    clock = Clock()
    limiter = Limiter(rpm=600, now=clock)
    clock.now = 600
    assert sum(moment < 600.5 for moment in times(limiter, clock, 1, 30)) <= 16


def test_refund_lets_the_next_go_earlier():
    clock = Clock()
    limiter = Limiter(tpm=60_000, now=clock)
    limiter.take(10_000)
    assert limiter.wait() == pytest.approx(10 / 0.985)
    limiter.refund(9_000)
    assert limiter.wait() == pytest.approx(1 / 0.985)
    limiter.refund(-5)
    assert limiter.wait() == pytest.approx(1 / 0.985)


def test_headers_tell_the_limit_and_what_is_left():
    clock = Clock()
    limiter = Limiter(now=clock)
    assert limiter.wait() == 0
    limiter.heed({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59"}, 10)
    limiter.take(10)
    assert limiter.wait() == pytest.approx(1 / 0.985)
    limiter.heed({"x-ratelimit-limit-requests": "600"}, 10)  # more than we knew: the lower one stays
    assert limiter.wait() == pytest.approx(1 / 0.985)
    limiter.heed({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0s"}, 10)
    assert limiter.wait() == pytest.approx(2 / 0.985)


def test_nonsense_headers_change_nothing():
    limiter = Limiter(rpm=60, now=Clock())
    limiter.heed(
        {"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-tokens": "-1", "x-ratelimit-limit-tokens": "nan"},
        1,
    )
    assert limiter.wait() == 0


def test_hold():
    clock = Clock()
    limiter = Limiter(rpm=60_000, now=clock)
    limiter.hold(3)
    limiter.hold(1)
    assert limiter.wait() == 3
    clock.now = 3
    assert limiter.wait() == 0


def test_a_stop_ends_the_waiting():
    async def scenario():
        limiter = Limiter(rpm=1)
        assert await limiter.acquire(1)
        return await asyncio.wait_for(limiter.acquire(1, lambda: True), 2)

    assert asyncio.run(scenario()) is False


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("721ms", 0.721),
        ("6m0s", 360),
        ("1.5s", 1.5),
        ("1h2m3s", 3723),
        ("0s", 0),
        ("2", 2),
        ("", None),
        ("soon", None),
        ("1.2.3s", None),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == (None if seconds is None else pytest.approx(seconds))
