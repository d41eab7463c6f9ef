"""What a run knows of itself while it goes: the journal, the budget, the counts, and whether to stop."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lens_caption.engine.budget import NOTHING, Amount
from lens_caption.engine.journal import Settlement
from lens_caption.engine.policy import POLICIES, Fate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lens_caption.engine.budget import Budget
    from lens_caption.engine.journal import Journal
    from lens_caption.profiles import Usage
    from lens_caption.profiles.schema import Lane
    from lens_core.contracts import CaptionOutcome
    from lens_core.pipeline.context import StageContext

__all__ = ["PATIENCE", "Book", "Heard", "with_facts"]

PATIENCE = 32
"""So many images without an answer, or answers without a caption, are no accident."""

_UNANSWERED = {"transport", "bad-image"}


@dataclass
class Heard:
    """What an endpoint said: in one run, or in all the parts that a worker takes one after the other.

    Args:
        answers: images that it answered about.
        captions: images that got a caption; those of earlier runs count, too.
        silent: images of the parts before since its last answer.
    """

    answers: int = 0
    captions: int = 0
    silent: int = 0

    def count(self, statuses: Iterable[str]) -> None:
        """Count what became of images."""
        counts = Counter(statuses)
        self.answers += sum(count for status, count in counts.items() if status not in _UNANSWERED)
        self.captions += counts["ok"]


class Book:
    """The accounts of one run.

    That an image gets no answer need not lie with the image: an endpoint that is down, or set up wrongly, answers about
    none. So an image is journalled as refused once the endpoint has answered about another; and the run stops when
    `patience` images in a row got no answer, or when in the end those are more than all that got one. It stops as well
    when all that it bought are answers without a caption.

    Args:
        journal: on disk.
        budget: of the stage.
        context: for progress and interruption.
        heard: what the endpoint said before.
    """

    def __init__(self, journal: Journal, budget: Budget, context: StageContext, heard: Heard):
        self.journal = journal
        self.budget = budget
        self.context = context
        self.heard = heard
        self.decided: Counter[str] = Counter()
        self.in_flight = 0
        self.waiting = 0
        self.refused: str | None = None
        self.exhausted: str | None = None
        self.silent: str | None = None
        self.patience: float = math.inf
        self._unanswered: dict[str, CaptionOutcome] = {}
        self._started = time.monotonic()
        self._before = 0

    def known(self, statuses: Mapping[str, str]) -> None:
        """Count what earlier runs decided."""
        self.decided.update(statuses.values())
        self.heard.captions += self.decided["ok"]
        self._before = self.decided.total()

    def look_back(self) -> None:
        """This run has nothing new to ask, so what the endpoint answered in earlier ones speaks for it."""
        self.heard.count(self.journal.statuses().values())

    def count(self, outcomes: Iterable[CaptionOutcome]) -> None:
        """Count outcomes that are journalled."""
        self.decided.update(outcome.status for outcome in outcomes)

    def decide(self, outcomes: Sequence[CaptionOutcome]) -> list[CaptionOutcome]:
        """Count what became of images that the endpoint was asked about; returns what is to be journalled now."""
        answers = [outcome for outcome in outcomes if outcome.status not in _UNANSWERED]
        if answers:
            outcomes = [*self._held(), *outcomes]
            self.heard.count(outcome.status for outcome in answers)
            self.heard.silent = 0
            self._unanswered.clear()
            if not self.heard.captions and self.heard.answers >= PATIENCE:
                self.silent = (
                    f"answered about {self.heard.answers} images and gave no caption: "
                    f"{answers[-1].status}: {answers[-1].detail}"
                )
        else:
            self._unanswered.update((outcome.key, outcome) for outcome in outcomes)
            if self._in_a_row() >= self.patience:
                self._give_up()
            outcomes = [outcome for outcome in outcomes if outcome.status == "transport"]
        self.count(outcomes)
        return list(outcomes)

    def ask_again(self) -> None:
        """From here on, what got no answer is asked about once more; that it fails again is to be expected."""
        self.decided["transport"] = 0
        self.patience = max(self.patience, self.heard.answers + 1)
        self._unanswered.clear()

    def conclude(self) -> None:
        """No answer is to come: what is in doubt was the images' fault, unless it outnumbers what was answered."""
        if self._in_a_row() > self.heard.answers and not self.stopping():
            self._give_up()
        held = self._held()
        if self.stopping():
            held = [replace(outcome, status="transport") for outcome in held]
        else:
            self.heard.silent = self._in_a_row()
        self.journal.write(held)
        self.count(held)
        self._unanswered.clear()

    def _held(self) -> list[CaptionOutcome]:
        """Refused images that are not journalled; what failed in transport is, and is asked about again anyway."""
        return [outcome for outcome in self._unanswered.values() if outcome.status != "transport"]

    def _in_a_row(self) -> int:
        """Images without an answer since the last one."""
        return self.heard.silent + len(self._unanswered)

    def _give_up(self) -> None:
        *_, last = self._unanswered.values()
        self.silent = f"answered none of the last {self._in_a_row()} images: {last.detail}"

    def charge(self, fate: Fate, reserved: Amount, usage: Usage | None, lane: Lane) -> tuple[Amount, bool]:
        """What an attempt counts as by the table, and whether that is a guess."""
        charge = POLICIES[fate].charge
        if charge == "nothing":
            return NOTHING, False
        if charge == "usage" and usage is not None:
            return self.budget.cost(usage, lane), False
        return reserved, True

    def settlement(self, attempt: int, fate: Fate, reserved: Amount, usage: Usage | None, lane: Lane) -> Settlement:
        """The journal's line about an attempt, which was made in that lane."""
        cost, guessed = self.charge(fate, reserved, usage, lane)
        return Settlement(attempt=attempt, cost=cost, lost=guessed)

    def stopping(self) -> bool:
        """Whether nothing new is to be sent."""
        reasons = (self.refused, self.exhausted, self.silent)
        return any(reason is not None for reason in reasons) or self.context.should_stop()

    async def pause(self, seconds: float) -> None:
        """Wait, but not once the run is to stop."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.stopping():
            await asyncio.sleep(min(left, 0.2))

    async def keep_showing(self) -> None:
        """Tell the user how far it is, for ever."""
        while True:
            self.show()
            await asyncio.sleep(0.5)

    def show(self) -> None:
        """Tell the user how far it is."""
        done = self.decided.total() + len(self._held())
        failed = done - self.decided["ok"]
        pace = (done - self._before) / max(1e-9, time.monotonic() - self._started)
        spent = self.budget.spent
        money = {} if not spent.usd else {"usd": float(spent.usd)}
        self.context.progress.update(
            done, failed=failed, in_flight=self.in_flight + self.waiting, **{"images/s": round(pace, 2)}, **money
        )


def with_facts(outcome: CaptionOutcome, facts: Mapping[str, str | int | float]) -> CaptionOutcome:
    """The outcome with more in its provenance."""
    return replace(outcome, provenance={**outcome.provenance, **facts})
