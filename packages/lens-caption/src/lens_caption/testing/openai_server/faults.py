"""What goes wrong, and when: by script, for a chosen image, or at a rate that a seed decides.

A fault drawn at a rate depends on the seed, the image and how often it has been asked about: the same run meets the
same faults in whatever order its requests arrive, and asking again helps.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["BATCH_FAULTS", "CONTROL_FAULTS", "ERRORS", "FAULTS", "GROUPS", "Faults"]

LIMITING = ("429", "429-retry-after", "429-retry-after-ms", "429-exhausted", "flex-unavailable")
STOPPING = ("quota", "400")
BROKEN = ("500", "502", "503", "408", "html", "truncated-json", "drop")
BILLED_AND_LOST = ("drop-after-billing", "truncated-json-after-billing", "empty-choices")
WAITING = ("slow", "slow-drip", "hang")
CONTENT = ("refusal", "refusal-prose", "content-filter", "length", "empty", "schema-invalid")
TEXT = ("loop", "boilerplate", "wrong-language", "reasoning-leak")
IDENTITY = ("swapped", "renamed", "downgraded")

FAULTS = ("ok", *LIMITING, *STOPPING, *BROKEN, *BILLED_AND_LOST, *WAITING, *CONTENT, *TEXT, *IDENTITY)
"""What a request may meet; `ok` answers properly."""

GROUPS: dict[str, tuple[str, ...]] = {
    "passing": (*LIMITING[:3], *BROKEN, *BILLED_AND_LOST, "slow", "slow-drip"),
    "content": CONTENT,
    "text": TEXT,
    "identity": IDENTITY,
}
"""Groups of faults for `kinds`: those that another try mends, and those of the answer itself."""

BATCH_FAULTS = (
    "ok",
    "expired",
    "partly-failed",
    "all-failed",
    "invalid",
    "token-limit",
    "empty-file-ids",
    "output-expired",
    "output-late",
    "output-missing",
)
"""What a batch as a whole may meet."""

_PASSING_CONTROL = ("500", "503", "429", "html", "drop", "drop-after")
CONTROL_FAULTS = ("ok", *_PASSING_CONTROL, "404", "429-retry-after", "504-late")
"""What requests to /v1/files and /v1/batches may meet; `drop-after` does what was asked, and the answer is lost;
`504-late` does it, too, but only a second after it has been answered."""


ERRORS: dict[str, tuple[int, str, str]] = {
    "429": (429, "rate_limit_exceeded", "Rate limit reached."),
    "429-retry-after": (429, "rate_limit_exceeded", "Rate limit reached."),
    "429-retry-after-ms": (429, "rate_limit_exceeded", "Rate limit reached."),
    "429-exhausted": (429, "resource_exhausted", "Resource exhausted. Please try again later."),
    "flex-unavailable": (429, "resource_unavailable", "Resource unavailable: no capacity for flex processing now."),
    "quota": (
        429,
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "400": (400, "invalid_image", "The image is not allowed."),
    "500": (500, "server_error", "The server had an error while processing your request. Sorry about that!"),
    "502": (502, "bad_gateway", "Bad gateway."),
    "503": (503, "overloaded", "The engine is currently overloaded, please try again later."),
    "408": (408, "timeout", "Request timed out."),
    "404": (404, "not_found", "Not found."),
    "504-late": (504, "timeout", "The gateway timed out."),
}
"""Faults that are answered with an error: status, code, message."""


class Faults:
    """The schedule.

    Args:
        script: met by successive requests in this order; afterwards the rate decides.
        rate: share of the requests that meet a fault.
        seed: decides which, and what.
        kinds: what they meet: names from `FAULTS`, or groups from `GROUPS`.
        always: what every request about an image meets, by the number that it bears or the sha256 of its file.
        batch_script: met by successive batches.
        batch_rate: share of the batches that meet a fault.
        batch_kinds: what they meet, from `BATCH_FAULTS`.
        control_script: met by successive requests to /v1/files and /v1/batches.
        control_rate: share of those that meet a fault.
        control_kinds: what they meet, from `CONTROL_FAULTS`.
        flex_rate: share of the requests on the flex tier that find no resources.

    Raises:
        ValueError: a name is unknown, or a rate is not between 0 and 1.
    """

    def __init__(
        self,
        script: Iterable[str] = (),
        *,
        rate: float = 0.0,
        seed: int = 0,
        kinds: Iterable[str] = ("passing",),
        always: Mapping[int | str, str] | None = None,
        batch_script: Iterable[str] = (),
        batch_rate: float = 0.0,
        batch_kinds: Iterable[str] = ("expired", "partly-failed", "all-failed", "empty-file-ids"),
        control_script: Iterable[str] = (),
        control_rate: float = 0.0,
        control_kinds: Iterable[str] = _PASSING_CONTROL,
        flex_rate: float = 0.0,
    ):
        self.seed = seed
        self.always: dict[int | str, str] = dict(always or {})
        self.met: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._asked: Counter[str] = Counter()
        self._scripts = {
            "request": deque(_known(script, FAULTS)),
            "batch": deque(_known(batch_script, BATCH_FAULTS)),
            "control": deque(_known(control_script, CONTROL_FAULTS)),
            "flex": deque[str](),
        }
        flat = [name for kind in kinds for name in GROUPS.get(kind, (kind,))]
        self._kinds = {
            "request": _known(flat, FAULTS),
            "batch": _known(batch_kinds, BATCH_FAULTS),
            "control": _known(control_kinds, CONTROL_FAULTS),
            "flex": ["flex-unavailable"],
        }
        self._rates = {"request": rate, "batch": batch_rate, "control": control_rate, "flex": flex_rate}
        _known(self.always.values(), FAULTS)
        for value in self._rates.values():
            if not 0 <= value <= 1:
                raise ValueError(f"a rate is between 0 and 1, not {value}")

    def extend(self, script: Iterable[str]) -> None:
        """Add to what the next requests meet."""
        known = _known(script, FAULTS)
        with self._lock:
            self._scripts["request"].extend(known)

    def set_rate(self, rate: float) -> None:
        """From now on, this share of the requests meets a fault."""
        if not 0 <= rate <= 1:
            raise ValueError(f"a rate is between 0 and 1, not {rate}")
        self._rates["request"] = rate

    def for_request(self, image: str, number: int | None, tier: str = "default") -> str:
        """What a request about an image meets."""
        if tier == "flex" and self._rates["flex"] and (name := self._next("flex", image)) != "ok":
            return name
        always = self.always.get(image) or (self.always.get(number) if number is not None else None)
        return self._next("request", image, always)

    def for_batch(self, digest: str) -> str:
        """What a batch of this file meets."""
        return self._next("batch", digest)

    def for_control(self, operation: str) -> str:
        """What a request such as "POST /v1/batches" meets."""
        return self._next("control", operation)

    def share(self, *parts: str) -> float:
        """A number in [0, 1) that the seed and these words decide."""
        return int.from_bytes(hashlib.sha256("\0".join((str(self.seed), *parts)).encode()).digest()[:6]) / 2**48

    def _next(self, stream: str, key: str, always: str | None = None) -> str:
        with self._lock:
            self._asked[f"{stream} {key}"] += 1
            attempt = str(self._asked[f"{stream} {key}"])
            script, kinds = self._scripts[stream], self._kinds[stream]
            if always is not None:
                name = always
            elif script:
                name = script.popleft()
            elif kinds and self.share(stream, key, attempt) < self._rates[stream]:
                name = kinds[int(self.share(stream, key, attempt, "kind") * len(kinds))]
            else:
                name = "ok"
            self.met[name if stream == "request" else f"{stream}:{name}"] += 1
            return name


def _known(names: Iterable[str], all_names: tuple[str, ...]) -> list[str]:
    names = list(names)
    for name in names:
        if name not in all_names:
            raise ValueError(f"unknown fault {name!r}; there are: {', '.join(all_names)}")
    return names
