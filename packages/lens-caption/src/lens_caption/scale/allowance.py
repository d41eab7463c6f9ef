"""One budget for several workers: each draws small amounts from it, by creating the next file of a numbered series.

A file is created exclusively and never changed. Who creates number n has read all before it, so the sum of all files
is known at that moment, and never passes the budget. What a dead worker drew and did not spend is lost to the others,
as if it were spent: nobody knows better.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lens_caption.engine.budget import NOTHING, Amount
from lens_core.storage import urls

if TYPE_CHECKING:
    from lens_caption.engine.settings import BudgetSettings
    from lens_core.storage.leases import Leases

__all__ = ["Allowance"]

_DRAWS = 64
"""A worker draws this part of the budget at a time, so that little is lost with it."""


class Allowance:
    """What this worker may take of what all workers have in common: of the budget, and of the rate.

    Args:
        url: the folder of the draws.
        leases: who this worker is, and how many there are.
        settings: the whole budget; None bounds nothing.
        elsewhere: what this worker spent besides what its present journal says.
    """

    def __init__(self, url: str, leases: Leases, settings: BudgetSettings | None, elsewhere: Amount = NOTHING):
        self.elsewhere = elsewhere
        self.granted = NOTHING
        self._url = url
        self._leases = leases
        self._settings = settings
        self._drawn: list[Amount] = []
        self._look()

    def draw(self, need: Amount) -> bool:
        """Draw some more, at least what is needed; False if there is not so much left. It waits for the store."""
        if self._settings is None:
            return True
        while True:
            self._look()
            amount = self._next(self._settings, need)
            if amount is None:
                return False
            data = json.dumps({"worker": self._leases.worker, **_plain(amount)}).encode()
            if urls.create_exclusive(self._file(len(self._drawn)), data):
                self._look()
                return True

    def workers(self) -> int:
        """How many share the rate, this one included."""
        return self._leases.workers()

    def _look(self) -> None:
        """Read what was drawn since the last look; what this worker drew in an earlier life is still its own."""
        while urls.exists(url := self._file(len(self._drawn))):
            facts = json.loads(urls.read_text(url))
            amount = Amount(Decimal(facts["usd"]), facts["tokens"], facts["images"])
            self._drawn.append(amount)
            if facts["worker"] == self._leases.worker:
                self.granted += amount

    def _next(self, settings: BudgetSettings, need: Amount) -> Amount | None:
        drawn = sum(self._drawn, NOTHING)
        amounts: dict[str, Any] = {}
        for name, whole in (("usd", settings.usd), ("tokens", settings.tokens), ("images", settings.images)):
            if whole is None:
                continue
            wanted, left = getattr(need, name), whole - getattr(drawn, name)
            if wanted is None or wanted > left:
                return None
            share = whole / _DRAWS if isinstance(whole, Decimal) else -(-whole // _DRAWS)
            amounts[name] = min(left, max(share, wanted))
        return Amount(**amounts)

    def _file(self, number: int) -> str:
        return urls.join(self._url, f"{number:06d}")


def _plain(amount: Amount) -> dict[str, Any]:
    return {"usd": str(amount.usd), "tokens": amount.tokens, "images": amount.images}
