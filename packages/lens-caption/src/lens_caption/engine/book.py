"""What a run knows of itself while it goes: the journal, the budget, the counts, and whether to stop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from lens_caption.engine.budget import NOTHING, Amount
from lens_caption.engine.journal import Settlement
from lens_caption.engine.policy import POLICIES, Fate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lens_caption.engine.budget import Budget
    from lens_caption.engine.journal import Journal
    from lens_caption.profiles import Usage
    from lens_core.contracts import CaptionOutcome
    from lens_core.pipeline.context import StageContext

__all__ = ["Book", "with_facts"]


class Book:
    """The accounts of one run.

    Args:
        journal: on disk.
        budget: of the stage.
        context: for progress and interruption.
    """

    def __init__(self, journal: Journal, budget: Budget, context: StageContext):
        self.journal = journal
        self.budget = budget
        self.context = context
        self.decided: Counter[str] = Counter()
        self.in_flight = 0
        self.refused: str | None = None
        self.exhausted: str | None = None
        self._started = time.monotonic()
        self._before = 0

    def known(self, statuses: Mapping[str, str]) -> None:
        """Count what earlier runs decided."""
        self.decided.update(statuses.values())
        self._before = self.decided.total()

    def decide(self, outcomes: Iterable[CaptionOutcome]) -> None:
        """Count outcomes that are journalled."""
        self.decided.update(outcome.status for outcome in outcomes)

    def charge(self, fate: Fate, reserved: Amount, usage: Usage | None) -> tuple[Amount, bool]:
        """What an attempt counts as by the table, and whether that is a guess."""
        charge = POLICIES[fate].charge
        if charge == "nothing":
            return NOTHING, False
        if charge == "usage" and usage is not None:
            return self.budget.cost(usage), False
        return reserved, True

    def settlement(self, attempt: int, fate: Fate, reserved: Amount, usage: Usage | None) -> Settlement:
        """The journal's line about an attempt."""
        cost, guessed = self.charge(fate, reserved, usage)
        return Settlement(attempt=attempt, cost=cost, lost=guessed)

    def stopping(self) -> bool:
        """Whether nothing new is to be sent."""
        return self.refused is not None or self.exhausted is not None or self.context.should_stop()

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
        done, failed = self.decided.total(), self.decided.total() - self.decided["ok"]
        pace = (done - self._before) / max(1e-9, time.monotonic() - self._started)
        spent = self.budget.spent
        money = {} if not spent.usd else {"usd": float(spent.usd)}
        self.context.progress.update(
            done, failed=failed, in_flight=self.in_flight, **{"images/s": round(pace, 2)}, **money
        )


def with_facts(outcome: CaptionOutcome, facts: Mapping[str, str | int | float]) -> CaptionOutcome:
    """The outcome with more in its provenance."""
    return replace(outcome, provenance={**outcome.provenance, **facts})
