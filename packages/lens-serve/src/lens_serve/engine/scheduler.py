"""Who takes the next step.

The job that will be done soonest goes first; waiting adds a little to its precedence. Others join its tick while that
makes good use of the device, and no longer: a device that is full already only makes them all late.

Above this order stand two rules. A key that has used up its fair share (see `fair`) comes after those that have not.
And of keys with credit, a job that has waited many times as long as it takes goes first, oldest promise first.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lens_serve.engine.cost import lean_steps
from lens_serve.engine.fair import FairShares

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from lens_serve.config import EngineSettings
    from lens_serve.engine.cost import Branch, CostModel

__all__ = ["Entry", "Scheduler"]

_STRETCHED_ABOVE_S = (1.0, 4.0)
_ROUND = 2.0
"""A key of weight 1 may take as long per round as this many of the longest jobs in hand.

Fewer is fairer in the short run and disturbs the order more: with five keys at load 0.8, a simulation has 86 % of the
requests done within four times their solo time at 1, and 90 % at 2; with one key, 93 %.
"""

_ALIKE_SEQUENCES = 8
"""In a tick of the policy "same-shape", at most."""


@dataclass(kw_only=True, eq=False, slots=True)
class Entry:
    """What the scheduler knows of a job whose text is encoded.

    Args:
        id: of the job, unique.
        model: whose prices apply.
        group: jobs share a tick only if this is equal.
        sequences: one branch or two, always in the same tick.
        steps: until it can be decoded.
        pixels: of the picture.
        taken: of the steps; who runs the ticks counts them.
        reuses_guidance: every other step, the second first, does without the second branch.
        key: who pays.
        weight: of that key.
        arrived: when.
        deadline: when it is of no use any more.
    """

    id: str
    model: str
    group: Hashable
    sequences: tuple[Branch, ...]
    steps: int
    pixels: int
    taken: int = 0
    reuses_guidance: bool = False
    key: str = ""
    weight: float = 1.0
    arrived: float
    deadline: float | None = None

    @property
    def steps_left(self) -> int:
        """Until it can be decoded."""
        return self.steps - self.taken

    @property
    def is_lean(self) -> bool:
        """Whether the next step does without the second branch."""
        return self.reuses_guidance and self.taken % 2 == 1

    @property
    def next_sequences(self) -> tuple[Branch, ...]:
        """The branches that the next step is made of."""
        return self.sequences[:1] if self.is_lean else self.sequences


class _Priced:
    """An entry with what does not change of its prices."""

    __slots__ = ("_tokens", "cost", "decode", "entry", "lean_step", "least_tokens", "shape", "solo_s", "step")

    def __init__(self, entry: Entry, cost: CostModel):
        self.entry, self.cost = entry, cost
        self.step, self.decode = cost.tick_price(entry.sequences), cost.decode_price(entry.pixels)
        self.lean_step = cost.tick_price(entry.sequences[:1])
        self.solo_s = self.remaining_s()
        self._tokens = sum(sequence.tokens for sequence in entry.sequences)
        self.least_tokens = entry.sequences[0].tokens if entry.reuses_guidance else self._tokens
        sizes = tuple(sequence.image_tokens for sequence in entry.sequences)
        self.shape = (entry.group, sizes, entry.steps_left, entry.reuses_guidance)

    @property
    def tokens(self) -> int:
        """Of the next step."""
        return self.entry.sequences[0].tokens if self.entry.is_lean else self._tokens

    def remaining_s(self) -> float:
        entry, seconds = self.entry, self.cost.seconds
        left_s = (entry.steps - entry.taken) * seconds(self.step) + seconds(self.decode)
        if entry.reuses_guidance:
            left_s -= lean_steps(entry.taken, entry.steps) * (seconds(self.step) - seconds(self.lean_step))
        return left_s


class Scheduler:
    """Jobs between the encoding of their text and the decoding of their picture.

    Times are of one clock, the caller's; nothing here looks at another. Every method takes time in proportion to the
    jobs at most.

    Args:
        settings: policy, ageing, starvation guard, and how the knee is stretched.
        costs: of each model.
        knee_tokens: that fill the device, of each model.
    """

    def __init__(self, settings: EngineSettings, costs: Mapping[str, CostModel], knee_tokens: Mapping[str, int]):
        self._settings, self._costs, self._knee_tokens = settings, costs, knee_tokens
        self._jobs: dict[str, _Priced] = {}
        self._due: dict[str, _Priced] = {}  # those with a deadline
        self._shares = FairShares()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, entry: Entry) -> None:
        """Take a job in. Raises ValueError for an id that is here already, and for a weight that is not positive."""
        if entry.id in self._jobs:
            raise ValueError(f"job {entry.id!r} is scheduled already; ids are unique")
        job = _Priced(entry, self._costs[entry.model])
        self._shares.join(entry.key, entry.weight, _ROUND * job.solo_s)
        self._jobs[entry.id] = job
        if entry.deadline is not None:
            self._due[entry.id] = job

    def remove(self, id: str) -> Entry | None:
        """Forget a job, done or not; None if it is not here."""
        job = self._jobs.pop(id, None)
        self._due.pop(id, None)
        if job is None:
            return None
        self._shares.leave(job.entry.key)
        return job.entry

    def next_tick(self, now: float) -> list[Entry]:
        """Who takes a step together; empty if there are no jobs."""
        if not self._jobs:
            return []
        if self._settings.policy == "first-come":
            return [self._first_come().entry]
        if self._settings.policy == "same-shape":
            return self._same_shape()
        return self._by_remaining_time(now)

    def took(self, members: list[Entry], seconds: float, now: float) -> None:
        """Charge the keys of a tick that took so long, in proportion to the FLOPs of its members.

        To be told before the step is counted: what it was made of is what is next until then.
        """
        flops = [sum(map(self._costs[entry.model].flops, entry.next_sequences)) for entry in members]
        whole = sum(flops)
        for entry, part in zip(members, flops, strict=True):
            self._shares.charge(entry.key, seconds * part / whole)

    def backlog_s(self) -> float:
        """Predicted seconds of all jobs, one after the other."""
        return sum(job.remaining_s() for job in self._jobs.values())

    def expired(self, now: float) -> list[Entry]:
        """Jobs that are past their deadline, or cannot make it any more."""
        return [
            job.entry
            for job in self._due.values()
            if job.entry.deadline is not None and now + job.remaining_s() > job.entry.deadline
        ]

    def _by_remaining_time(self, now: float) -> list[Entry]:
        jobs = self._jobs.values()
        self._shares.settle(_ROUND * max([job.solo_s for job in jobs]))
        spent = self._shares.spent()
        remaining = [job.remaining_s() for job in jobs]
        # Who floods the server stretches the knee as long as he has credit, and no longer: it makes others' ticks long.
        backlog_s = sum([left for job, left in zip(jobs, remaining, strict=True) if job.entry.key not in spent])
        order = self._in_order(now, remaining, spent)
        first = next(order)
        members = [first.entry]
        room = self._stretch(backlog_s) * self._knee_tokens[first.entry.model] - first.tokens
        least = min([job.least_tokens for job in jobs])
        while room >= least and (job := next(order, None)):
            if job.tokens <= room and job.entry.group == first.entry.group:
                members.append(job.entry)
                room -= job.tokens
        return members

    def _in_order(self, now: float, remaining: list[float], spent: set[str]) -> Iterator[_Priced]:
        """All jobs, the next to run first."""
        ageing, starvation = self._settings.ageing, self._settings.starvation
        starving: list[tuple[float, int, _Priced]] = []
        others: list[tuple[float, int, _Priced]] = []
        later: list[tuple[float, int, _Priced]] = []
        for number, (job, left) in enumerate(zip(self._jobs.values(), remaining, strict=True)):
            entry = job.entry
            # Ageing takes its part of `now - arrived` from everybody; what is common to all does not change the order.
            urgency = left + ageing * entry.arrived
            patience = entry.arrived + starvation * job.solo_s
            if entry.key in spent:
                later.append((urgency, number, job))
            elif patience <= now:
                starving.append((patience, number, job))
            else:
                others.append((urgency, number, job))
        for tier in (starving, others, later):
            heapq.heapify(tier)
            while tier:
                yield heapq.heappop(tier)[2]

    def _stretch(self, backlog_s: float) -> float:
        factors = self._settings.stretch
        return factors[min(sum(backlog_s >= bound for bound in _STRETCHED_ABOVE_S), len(factors) - 1)]

    def _first_come(self) -> _Priced:
        return min(self._jobs.values(), key=_turn)

    def _same_shape(self) -> list[Entry]:
        order = sorted(self._jobs.values(), key=_turn)
        alike = itertools.takewhile(lambda job: job.shape == order[0].shape, order)
        most = max(1, _ALIKE_SEQUENCES // len(order[0].entry.sequences))
        return [job.entry for job in itertools.islice(alike, most)]


def _turn(job: _Priced) -> tuple[bool, float]:
    """In order of arrival, but what was begun is ended."""
    return not job.entry.taken, job.entry.arrived
