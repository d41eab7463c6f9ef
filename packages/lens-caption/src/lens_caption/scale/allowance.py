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

__all__ = ["Allowance", "Draws"]

_DRAWS = 64
"""A worker draws this part of the budget at a time, so that little is lost with it."""


class Draws:
    """What was drawn so far, in all and by each worker.

    Args:
        url: the folder of the files.
    """

    def __init__(self, url: str):
        self.whole = NOTHING
        self.by_worker: dict[str, Amount] = {}
        self._url = url
        self._count = 0
        self.look()

    def look(self) -> None:
        """Read what was drawn since the last look."""
        while urls.exists(url := self._next()):
            facts = json.loads(urls.read_text(url))
            usd = None if facts["usd"] is None else Decimal(facts["usd"])
            amount = Amount(usd, facts["tokens"], facts["images"])
            self.whole += amount
            self.by_worker[facts["worker"]] = self.by_worker.get(facts["worker"], NOTHING) + amount
            self._count += 1

    def add(self, worker: str, amount: Amount) -> bool:
        """Draw an amount, knowing all that was drawn before; False if another draw came first."""
        usd = None if amount.usd is None else str(amount.usd)
        facts = {"worker": worker, "usd": usd, "tokens": amount.tokens, "images": amount.images}
        added = urls.create_exclusive(self._next(), json.dumps(facts).encode())
        self.look()
        return added

    def _next(self) -> str:
        return urls.join(self._url, f"{self._count:06d}")


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
        self._leases = leases
        self._settings = settings
        self._draws = Draws(url)

    @property
    def granted(self) -> Amount:
        """What this worker has drawn; what it drew in an earlier life is still its own."""
        return self._draws.by_worker.get(self._leases.worker, NOTHING)

    def draw(self, need: Amount) -> bool:
        """Draw some more, at least what is needed; False if there is not so much left. It waits for the store."""
        if self._settings is None:
            return True
        self._draws.look()
        while (amount := self._next(self._settings, need)) is not None:
            if self._draws.add(self._leases.worker, amount):
                return True
        return False

    def workers(self) -> int:
        """How many share the rate, this one included."""
        return self._leases.workers()

    def _next(self, settings: BudgetSettings, need: Amount) -> Amount | None:
        amounts: dict[str, Any] = {}
        for name, whole in (("usd", settings.usd), ("tokens", settings.tokens), ("images", settings.images)):
            if whole is None:
                continue
            wanted, drawn = getattr(need, name), getattr(self._draws.whole, name)
            if wanted is None or drawn is None or wanted > whole - drawn:
                return None
            share = whole / _DRAWS if isinstance(whole, Decimal) else -(-whole // _DRAWS)
            amounts[name] = min(whole - drawn, max(share, wanted))
        return Amount(**amounts)
