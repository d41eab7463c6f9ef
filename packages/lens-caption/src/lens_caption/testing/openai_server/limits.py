"""Rate limits as OpenAI has them: requests and tokens per minute and model, refilled all the time.

What a limit says goes out with every answer as `x-ratelimit-*` headers, its times written as Go writes durations.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["Admission", "Limits", "RetryAfter", "go_duration"]

RetryAfter = Literal["both", "s", "ms", "missing", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What the limits say of a request.

    Args:
        refusal: the message of the 429; None if the request is let in.
        kind: which limit refuses, "requests" or "tokens".
        headers: to be sent with the answer.
    """

    refusal: str | None
    kind: str
    headers: dict[str, str]


class Limits:
    """Token buckets for requests and for tokens, a pair per model.

    Args:
        rpm: requests per minute; None leaves them unlimited.
        tpm: tokens per minute, input and the most output together; None leaves them unlimited.
        window_s: how many seconds' worth a bucket holds; less than 60 leaves less room for bursts.
        quantum_s: refill in steps of this many seconds, as servers do that count in windows; None refills all the time.
        refund: give back what was reserved for an answer and not used.
        retry_after: how a 429 says when to come back; "wrong" asks for too little.
    """

    def __init__(
        self,
        rpm: float | None = None,
        tpm: float | None = None,
        *,
        window_s: float = 60.0,
        quantum_s: float | None = None,
        refund: bool = True,
        retry_after: RetryAfter = "both",
    ):
        if retry_after not in get_args(RetryAfter):
            raise ValueError(f"retry_after is one of {', '.join(get_args(RetryAfter))}")
        self.rpm, self.tpm = rpm, tpm
        self.window_s, self.quantum_s = window_s, quantum_s
        self.refund = refund
        self.retry_after = retry_after
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def admit(self, model: str, tokens: int) -> Admission:
        """Let a request in, or refuse it; a refused one counts as a request, but uses no tokens."""
        with self._lock:
            requests, volume = self._pair(model)
            now = time.monotonic()
            waits = {"requests": requests.wait(1, now), "tokens": volume.wait(tokens, now)}
            kind = max(waits, key=lambda name: waits[name])
            refused = waits[kind] > 0
            requests.take(1, now)
            if not refused:
                volume.take(tokens, now)
            # Asking has made it longer, and who comes back when told so must be let in.
            wait = max(waits[kind], requests.wait(1, now))
            headers = self._headers(requests, volume, now)
        if not refused:
            return Admission(refusal=None, kind="", headers=headers)
        limit, unit = (self.rpm, "RPM") if kind == "requests" else (self.tpm, "TPM")
        amount = 1 if kind == "requests" else tokens
        if wait == math.inf:
            text = f"Request too large for {model} on {kind} per min ({unit}): Limit {limit:.0f}, Requested {amount}."
            return Admission(refusal=text, kind=kind, headers=headers)
        used = (limit or 0) - (requests if kind == "requests" else volume).level
        text = (
            f"Rate limit reached for {model} on {kind} per min ({unit}): Limit {limit:.0f}, Used {used:.0f}, "
            f"Requested {amount}. Please try again in {go_duration(wait)}."
        )
        return Admission(refusal=text, kind=kind, headers=headers | self.retry_headers(wait))

    def settle(self, model: str, unused: int) -> dict[str, str]:
        """Give back tokens that an answer did not need; headers for it."""
        with self._lock:
            requests, volume = self._pair(model)
            now = time.monotonic()
            if self.refund:
                volume.take(-unused, now)
            return self._headers(requests, volume, now)

    def retry_headers(self, wait_s: float) -> dict[str, str]:
        """How a 429 says when to come back."""
        seconds, milliseconds = str(math.ceil(wait_s)), str(math.ceil(wait_s * 1000))
        return {
            "both": {"retry-after": seconds, "retry-after-ms": milliseconds},
            "s": {"retry-after": seconds},
            "ms": {"retry-after-ms": milliseconds},
            "missing": {},
            "wrong": {"retry-after": "0"},
        }[self.retry_after]

    def _pair(self, model: str) -> tuple[_Bucket, _Bucket]:
        pair = []
        for kind, limit in (("requests", self.rpm), ("tokens", self.tpm)):
            if (model, kind) not in self._buckets:
                self._buckets[model, kind] = _Bucket(limit, self.window_s, self.quantum_s)
            pair.append(self._buckets[model, kind])
        return pair[0], pair[1]

    def _headers(self, requests: _Bucket, volume: _Bucket, now: float) -> dict[str, str]:
        headers = {}
        for name, bucket in (("requests", requests), ("tokens", volume)):
            if bucket.limit is not None:
                headers[f"x-ratelimit-limit-{name}"] = f"{bucket.limit:.0f}"
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level)))
                headers[f"x-ratelimit-reset-{name}"] = go_duration(bucket.wait(bucket.capacity, now))
        return headers


class _Bucket:
    """Fills at `limit / 60` a second up to what `window_s` brings; starts full."""

    def __init__(self, limit: float | None, window_s: float, quantum_s: float | None):
        self.limit = limit
        self.rate = (limit or 0.0) / 60
        self.capacity = max(1.0, self.rate * (quantum_s or window_s))
        self.quantum_s = quantum_s
        self.level = self.capacity
        self._at = self._grid(time.monotonic())

    def wait(self, amount: float, now: float) -> float:
        """Seconds until it holds so much; infinite if it never will."""
        if self.limit is None:
            return 0.0
        self._refill(now)
        missing = amount - self.level
        if missing <= 1e-9:
            return 0.0
        if amount > self.capacity or self.rate == 0:
            return math.inf
        seconds = missing / self.rate
        if self.quantum_s is None:
            return seconds
        return math.ceil(seconds / self.quantum_s - 1e-9) * self.quantum_s - (now - self._at)

    def take(self, amount: float, now: float) -> None:
        """Take some out, or put some back in."""
        self._refill(now)
        self.level = min(self.capacity, max(0.0, self.level - amount))

    def _refill(self, now: float) -> None:
        at = self._grid(now)
        self.level = min(self.capacity, self.level + self.rate * (at - self._at))
        self._at = at

    def _grid(self, now: float) -> float:
        return now if self.quantum_s is None else math.floor(now / self.quantum_s) * self.quantum_s


def go_duration(seconds: float) -> str:
    """Seconds as Go writes a duration, to the millisecond: `6m0s`, `1.5s`, `721ms`, `0s`."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + text
