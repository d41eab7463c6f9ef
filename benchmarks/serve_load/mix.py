"""What is asked for: kinds of requests, and when they come."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["BAD", "KINDS", "Arrival", "Kind", "LARGEST", "SMALLEST", "mean_s", "poisson", "quantile"]


@dataclass(frozen=True)
class Kind:
    """A kind of request, and how many of twenty are of it."""

    side: int
    steps: int
    guided: bool
    of_twenty: int

    @property
    def name(self) -> str:
        """As the tables have it."""
        return f"{self.side}x{self.side}, {self.steps} steps" + (", guided" if self.guided else "")

    @property
    def sequence_steps(self) -> int:
        """Steps of all its branches."""
        return self.steps * (2 if self.guided else 1)

    def body(self, number: int, **more: object) -> dict[str, object]:
        """Of a request for it, whose prompt nobody else has."""
        lens = {"seed": number, "steps": self.steps, "guidance": 3.0 if self.guided else 1.0}
        prompt = f"picture {number}: a red kite over a green hill, in the evening"
        return {"prompt": prompt, "size": f"{self.side}x{self.side}", "lens": lens, **more}


# In shares, steps, branches and relative sizes that of docs/reports/serve-policies.md, for a model and device that take
# a thousandth of the work in about the same time.
KINDS = (
    Kind(64, 4, False, 11),
    Kind(64, 20, True, 5),
    Kind(32, 4, False, 3),
    Kind(96, 20, True, 1),
)
SMALLEST, LARGEST = KINDS[2], KINDS[3]

BAD: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b"[]", 400),
    (b"{}", 400),
    (b'{"prompt": ""}', 400),
    (b'{"prompt": "a", "size": "63x64"}', 400),
    (b'{"prompt": "a", "size": "100000x10000"}', 400),
    (b'{"prompt": "a", "lens": {"steps": 100000}}', 400),
    (b'{"prompt": "a", "lens": {"guidance": NaN}}', 400),
    (b'{"prompt": "a", "colour": "red"}', 400),
    (b'{"prompt": "a", "model": "another"}', 404),
    (b'{"prompt": "' + b"a" * (1 << 20) + b'"}', 413),
)
"""Bodies of requests that are mistakes, and the status that tells so."""


@dataclass(frozen=True)
class Arrival:
    """A request, when it comes in seconds from the beginning, and its number."""

    time: float
    kind: Kind
    number: int


def mean_s(solo_s: dict[str, float]) -> float:
    """What a request of the mix takes alone, on average."""
    return sum(kind.of_twenty * solo_s[kind.name] for kind in KINDS) / 20


def poisson(rate: float, seconds: float, seed: int) -> list[Arrival]:
    """Requests at random times.

    Their number is what it should be, not random too, and so are the parts of the kinds: one run is not busier than
    another by chance.
    """
    rng = random.Random(seed)
    count = max(20, round(rate * seconds))
    deck = [kind for kind in KINDS for _ in range(kind.of_twenty)] * (count // 20 + 1)
    rng.shuffle(deck)
    times = sorted(rng.uniform(0, seconds) for _ in range(count))
    return [Arrival(time, kind, number) for number, (time, kind) in enumerate(zip(times, deck, strict=False))]


def quantile(values: list[float], share: float) -> float | None:
    """Of some values, none of which is made up; None if there are none."""
    return sorted(values)[round(share * (len(values) - 1))] if values else None
