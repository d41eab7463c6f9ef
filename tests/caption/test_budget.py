"""The budget: what is set aside, what is spent, and when it says no; then against the server's own ledger."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_caption.engine.budget import NOTHING, Amount, Budget, BudgetExhausted
from lens_caption.engine.settings import BudgetSettings
from lens_caption.profiles import UnknownPriceError, Usage, load_profile

PROFILE = load_profile("gpt-4.1", base_url=None, folder=None)  # 2 and 8 dollars per million; batch at half of that


def budget(lane="standard", spent=NOTHING, **bounds):
    return Budget(BudgetSettings(**bounds) if bounds else None, PROFILE, lane, spent)


def test_ten_cents_are_ten_cents():
    assert BudgetSettings.model_validate({"usd": 0.1}).usd == Decimal("0.1")


@pytest.mark.parametrize("data", [{}, {"usd": 0}, {"usd": -1}, {"tokens": 0}, {"images": 1.5}, {"usd": "nan"}])
def test_a_budget_that_bounds_nothing_is_refused(data):
    with pytest.raises(ValueError, match=r"budget|greater|integer|finite"):
        BudgetSettings.model_validate(data)


def test_cost_is_exact():
    usage = Usage(input_tokens=1000, output_tokens=100)
    assert budget().cost(usage, "standard") == Amount(Decimal("0.0028"), 1100, 1)
    assert budget("batch").cost(usage, "batch").usd == Decimal("0.0014")
    # Whatever the lane is now, a batch costs what batches cost; nobody knows what flex would.
    assert budget().cost(usage, "batch").usd == budget("flex").cost(usage, "batch").usd == Decimal("0.0014")
    assert budget().cost(usage, "flex").usd is None


def test_worst_case_covers_the_estimate_and_grows_with_what_was_seen():
    one = budget(usd=1)
    assert one.worst(1000, 500).tokens == 1050 + 500
    one.learn(1000, 900)
    assert one.worst(1000, 500).tokens == 1550
    one.learn(1000, 1200)
    assert one.worst(1000, 500).tokens == 1260 + 500


def test_flex_is_set_aside_as_standard_and_settled_as_it_was_served():
    one = Budget(BudgetSettings(usd=1), load_profile("gpt-6-luna", base_url=None, folder=None), "flex")
    million = {"input_tokens": 10**6, "output_tokens": 10**6}
    assert one.cost(Usage(**million, tier="default"), "flex").usd == Decimal("0.60")
    for tier in ("flex", ""):  # "" where the answer names none
        assert one.cost(Usage(**million, tier=tier), "flex").usd == Decimal("0.30")
    assert one.worst(10**6, 10**6).usd == Decimal("0.605")
    # Batches name no tier of their own.
    assert budget("batch").cost(Usage(**million, tier="default"), "batch").usd == 5


def test_an_unknown_price_is_refused_where_dollars_are_bounded():
    with pytest.raises(UnknownPriceError, match="an unknown price"):
        budget("flex", usd=5)
    assert budget("flex", images=5).worst(10, 10).usd is None


@pytest.mark.parametrize("bounds", [{"usd": "0.0056"}, {"tokens": 2200}, {"images": 2}])
def test_what_was_spent_before_counts(bounds):
    answer = Amount(Decimal("0.0028"), 1100, 1)
    assert budget(spent=answer, **bounds).fits(answer)
    assert not budget(spent=answer + answer, **bounds).fits(answer)


def test_it_waits_for_what_is_in_flight_and_then_says_no():
    async def scenario():
        one = budget(images=2)
        answer = one.worst(10, 10)
        await one.wait_for(answer)
        await one.wait_for(answer)
        third = asyncio.ensure_future(one.wait_for(answer))
        await asyncio.sleep(0.01)
        assert not third.done()
        one.settle(answer, NOTHING)  # the first was not billed, so there is room again
        await third
        one.settle(answer, answer)
        one.settle(answer, answer)
        with pytest.raises(BudgetExhausted, match=r"2 of budget.images 2 are spent"):
            await one.wait_for(answer)

    asyncio.run(scenario())


def test_it_waits_no_longer_than_the_run_goes_on():
    async def scenario():
        one = budget(images=1)
        answer = one.worst(10, 10)
        assert await one.wait_for(answer)
        assert not await asyncio.wait_for(one.wait_for(answer, lambda: True), 5)
        assert one.reserved == answer

    asyncio.run(scenario())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 700), st.floats(0, 1)), max_size=40))
def test_reservations_never_let_the_bill_pass_the_bound(requests):
    one = budget(usd="0.02")
    open_ = []
    for estimated, most, share in requests:
        worst = one.worst(estimated, most)
        if one.fits(worst):
            one.reserve(worst)
            usage = Usage(input_tokens=estimated, output_tokens=int(most * share))
            open_.append((worst, one.cost(usage, "standard")))
        if len(open_) > 3:
            one.settle(*open_.pop(0))
    for reserved, cost in open_:
        one.settle(reserved, cost)
    assert one.reserved == NOTHING
    assert one.spent.usd <= Decimal("0.02")
