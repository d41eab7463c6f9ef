"""The budget: the worst case is set aside before a request goes, and what it really cost is settled afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING

from lens_caption.profiles import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_caption.engine.settings import BudgetSettings
    from lens_caption.profiles import Profile
    from lens_caption.profiles.schema import Lane
    from lens_caption.scale.allowance import Allowance

__all__ = ["NOTHING", "Amount", "Budget", "BudgetExhausted"]

_MARGIN = Decimal("1.05")
"""On estimated input tokens: text is estimated by its length."""

_DEAREST = "default"
"""What answers call the tier whose price is the standard one."""


class BudgetExhausted(Exception):
    """The next request does not fit, and nothing in flight could make room for it; the message says why."""


@dataclass(frozen=True)
class Amount:
    """What something costs: dollars, tokens, billed answers. `usd` is None where no price is known."""

    usd: Decimal | None = Decimal(0)
    tokens: int = 0
    images: int = 0

    def __add__(self, other: Amount) -> Amount:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Amount(usd, self.tokens + other.tokens, self.images + other.images)

    def __sub__(self, other: Amount) -> Amount:
        usd = None if self.usd is None or other.usd is None else self.usd - other.usd
        return Amount(usd, self.tokens - other.tokens, self.images - other.images)


NOTHING = Amount()


class Budget:
    """What may be spent, what is spent, and what is set aside.

    Args:
        settings: the bounds; None bounds nothing, and still counts.
        profile: prices; None if nothing is known of the model.
        lane: as the profiles call it.
        spent: by earlier runs, unknown outcomes included.
        allowance: where one budget is for several workers, what this one may take of it.

    Raises:
        UnknownPriceError: there is a bound in dollars, and the lane has no known price.
    """

    def __init__(
        self,
        settings: BudgetSettings | None,
        profile: Profile | None,
        lane: Lane,
        spent: Amount = NOTHING,
        allowance: Allowance | None = None,
    ):
        self._settings = settings
        self._profile = profile
        self._lane = lane
        if settings is not None and settings.usd is not None and profile is not None:
            profile.price(lane)
        self.spent = spent
        self.reserved = NOTHING
        self._in_flight = 0
        self._over = Decimal(1)
        self._changed = asyncio.Event()
        self._allowance = allowance
        self._dry = False
        self._drawing = asyncio.Lock()

    def worst(self, input_tokens: int, max_output_tokens: int) -> Amount:
        """What a request costs at most.

        The estimate of its input grows with the worst that was seen so far.
        """
        tokens = int((input_tokens * _MARGIN * self._over).to_integral_value(ROUND_CEILING))
        return self.cost(Usage(input_tokens=tokens, output_tokens=max_output_tokens, tier=_DEAREST), self._lane)

    def cost(self, usage: Usage, lane: Lane) -> Amount:
        """What an answer cost; what was asked for as flex may have been served, and billed, as standard.

        Args:
            usage: as the answer says it.
            lane: in which it was bought, which an earlier run may have chosen.
        """
        usd = None
        if self._profile and lane in self._profile.prices:
            downgraded = lane == "flex" and usage.tier == _DEAREST and "standard" in self._profile.prices
            usd = self._profile.cost(usage, "standard" if downgraded else lane)
        return Amount(usd, usage.input_tokens + usage.output_tokens, 1)

    def learn(self, estimated_input: int, billed_input: int) -> None:
        """Remember how far an estimate was below the truth."""
        if estimated_input > 0 and billed_input > estimated_input:
            self._over = max(self._over, Decimal(billed_input) / Decimal(estimated_input))

    def fits(self, amount: Amount) -> bool:
        """Whether it fits beside everything that is spent or set aside."""
        return self._obstacle(amount) is None

    def reserve(self, amount: Amount, *, requests: int = 1) -> None:
        """Set it aside; the caller has made sure that it fits."""
        self.reserved += amount
        self._in_flight += requests

    async def wait_for(self, amount: Amount, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Set it aside as soon as it fits; False if it gave up before that.

        Raises:
            BudgetExhausted: it does not, and nothing is in flight that could leave something over.
        """
        while (obstacle := self._obstacle(amount)) is not None:
            if await self._draw(amount):
                continue
            if self._in_flight == 0:
                raise BudgetExhausted(obstacle)
            if give_up():
                return False
            self._changed.clear()
            with contextlib.suppress(TimeoutError):  # a batch may take a day, and the user may stop
                await asyncio.wait_for(self._changed.wait(), 0.2)
        self.reserve(amount)
        return True

    def settle(self, reserved: Amount, cost: Amount, *, requests: int = 1) -> None:
        """Count what it really cost, and free the rest."""
        self.reserved -= reserved
        self.spent += cost
        self._in_flight -= requests
        self._changed.set()

    async def _draw(self, amount: Amount) -> bool:
        """Take more from a budget that is common to several workers, until it is used up."""
        if self._allowance is None or self._dry:
            return False
        async with self._drawing:
            self._dry = not self.fits(amount) and not await asyncio.to_thread(self._allowance.draw, amount)
            return not self._dry

    def obstacle(self, amount: Amount) -> str:
        """Why it does not fit; "" if it does."""
        return self._obstacle(amount) or ""

    def _obstacle(self, amount: Amount) -> str | None:
        if self._settings is None:
            return None
        total = self.spent + self.reserved + amount
        for name, bound, value, spent, next_one in (
            ("usd", self._settings.usd, total.usd, self.spent.usd, amount.usd),
            ("tokens", self._settings.tokens, total.tokens, self.spent.tokens, amount.tokens),
            ("images", self._settings.images, total.images, self.spent.images, amount.images),
        ):
            if bound is not None and self._allowance is not None:
                bound = getattr(self._allowance.granted, name)
            if bound is not None and (value is None or value > bound):
                spent_text, next_text = _shown(spent), _shown(next_one)
                return f"{spent_text} of budget.{name} {bound} are spent, and the next request may take {next_text}"
        return None


def _shown(value: Decimal | int | None) -> str:
    if value is None:
        return "an unknown amount"
    return f"{value.quantize(Decimal('0.000001')).normalize():f}" if isinstance(value, Decimal) else str(value)
