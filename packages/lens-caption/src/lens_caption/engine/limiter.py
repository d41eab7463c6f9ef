"""Requests and tokens per minute, so that the server never has to say 429.

Two buckets fill at the limits' pace and hold one second's worth, so that a start is no burst. A request goes when
neither bucket is in debt, and then takes its worst case, into debt if need be: what it did not use comes back with
the answer. What the server's headers say counts for more than what anybody assumed.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Limiter", "parse_duration"]

_SHARE = 0.985
"""Of the limit that is used: clocks differ, and requests bunch on their way."""

_HELD_S = 1.0
_GO_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:([\d.]+)ms)?")


class _Bucket:
    def __init__(self, per_minute: float | None, sharers: Callable[[], int]):
        self.limit = per_minute
        self.sharers = sharers
        self.level = 0.0

    @property
    def rate(self) -> float:
        return _SHARE * self.limit / 60 / self.sharers() if self.limit else float("inf")

    def fill(self, seconds: float) -> None:
        if self.limit:
            self.level = min(self.level + self.rate * seconds, self.rate * _HELD_S)

    def wait(self) -> float:
        return -self.level / self.rate if self.limit and self.level < 0 else 0.0

    def take(self, amount: float) -> None:
        if self.limit:
            self.level -= amount


class Limiter:
    """Lets requests through in the order in which they ask.

    Args:
        rpm: requests per minute; None until the server's headers tell.
        tpm: tokens per minute, the most output counted in; likewise.
        now: a clock in seconds.
        sharers: how many processes have these limits in common, this one included; each takes an equal part.
    """

    def __init__(
        self,
        rpm: float | None = None,
        tpm: float | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        sharers: Callable[[], int] = lambda: 1,
    ):
        self._now = now
        self._buckets = {"requests": _Bucket(rpm, sharers), "tokens": _Bucket(tpm, sharers)}
        self._filled = now()
        self._held_until = 0.0
        self._turn = asyncio.Lock()

    async def acquire(self, tokens: int, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the turn of a request that takes so many tokens at most; False if it gave up before that."""
        async with self._turn:
            while (pause := self.wait()) > 0:
                if give_up():
                    return False
                await asyncio.sleep(min(pause, 0.2))  # a header may change it, and the user may stop
            if give_up():
                return False
            self.take(tokens)
        return True

    def wait(self) -> float:
        """Seconds until the next request may go."""
        self._fill()
        return max(self._held_until - self._now(), *(bucket.wait() for bucket in self._buckets.values()), 0.0)

    def take(self, tokens: int) -> None:
        """Count a request that goes now."""
        self._fill()
        self._buckets["requests"].take(1)
        self._buckets["tokens"].take(tokens)

    def refund(self, tokens: int) -> None:
        """Give back what a request reserved and did not use."""
        self._fill()
        self._buckets["tokens"].take(-max(0, tokens))

    def hold(self, seconds: float) -> None:
        """Send nothing for so long: the server asked for it."""
        self._held_until = max(self._held_until, self._now() + seconds)

    def heed(self, headers: Mapping[str, str], tokens: int) -> None:
        """Learn from an answer's `x-ratelimit-*` headers.

        A limit that is lower than ours, or that we did not know, replaces it. If less is left than the next requests
        take, they wait until it is there again: so a server that refunds nothing slows us down, not a 429.

        Args:
            headers: of the answer.
            tokens: that a request takes at most.
        """
        for kind, next_two in (("requests", 2.0), ("tokens", 2.0 * tokens)):
            bucket = self._buckets[kind]
            limit = _number(headers.get(f"x-ratelimit-limit-{kind}"))
            left = _number(headers.get(f"x-ratelimit-remaining-{kind}"))
            if limit and (bucket.limit is None or limit < bucket.limit):
                self._fill()
                bucket.limit, bucket.level = limit, min(bucket.level, 0.0)
            if bucket.limit and left is not None and left < next_two:
                reset = parse_duration(headers.get(f"x-ratelimit-reset-{kind}", ""))
                pause = (next_two - left) / bucket.rate
                self.hold(min(pause, reset) if reset is not None else pause)

    def _fill(self) -> None:
        now = self._now()
        for bucket in self._buckets.values():
            bucket.fill(max(0.0, now - self._filled))
        self._filled = now


def parse_duration(text: str) -> float | None:
    """Seconds of a duration as Go writes it (`6m0s`, `721ms`), or of a plain number; None if it is neither."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    match = _GO_DURATION.fullmatch(text.strip())
    if not text.strip() or not match:
        return None
    try:
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    except ValueError:
        return None
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
