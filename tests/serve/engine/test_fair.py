"""Keys that are always busy get seconds by weight, whoever comes and goes; nobody saves up, nor owes for long."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_serve.engine.fair import FairShares


def serve(shares, busy, seconds, rounds=1):
    """Each time whoever has most credit left takes so many seconds; returns what each took."""
    taken = dict.fromkeys(busy, 0.0)
    for _ in range(rounds):
        shares.settle(shares.quantum)
        key = max((key for key in busy if key not in shares.spent()), key=shares.credit)
        shares.charge(key, seconds)
        taken[key] += seconds
    return taken


@settings(deadline=None)
@given(
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=5),
    piece=st.floats(0.01, 3),
)
def test_seconds_are_taken_by_weight(weights, piece):
    shares = FairShares()
    busy = {str(number): weight for number, weight in enumerate(weights)}
    for key, weight in busy.items():
        shares.join(key, weight, 1.0)
    taken = serve(shares, busy, piece, rounds=1000)
    per_weight = [taken[key] / weight for key, weight in busy.items()]
    # A key is ahead by its own quantum and a piece at most, behind by no more.
    slack = 2 * (1.0 + piece / min(weights))
    assert max(per_weight) - min(per_weight) <= slack
    assert min(per_weight) > 0 or 1000 * piece < slack * sum(weights)


def test_who_was_idle_has_one_quantum_and_no_more():
    shares = FairShares()
    for key in ("busy", "idle"):
        shares.join(key, 1.0, 2.0)
    shares.leave("idle")
    assert serve(shares, ["busy"], 0.5, rounds=1000) == {"busy": 500.0}
    shares.join("idle", 1.0, 2.0)
    assert shares.credit("idle") == 2.0
    both = serve(shares, ["busy", "idle"], 0.5, rounds=40)
    assert both["idle"] - both["busy"] <= 2.0


def test_who_leaves_and_comes_back_finds_the_account_as_it_was():
    shares = FairShares()
    for key in ("waits", "comes and goes"):
        shares.join(key, 1.0, 2.0)
    taken = {"waits": 0.0, "comes and goes": 0.0}
    for _ in range(400):
        shares.settle(2.0)
        # It is always here when somebody is chosen, and chosen whenever it has credit, but never here afterwards.
        key = "comes and goes" if shares.credit("comes and goes") > 0 else "waits"
        shares.charge(key, 0.5)
        taken[key] += 0.5
        shares.leave("comes and goes")
        shares.settle(2.0)
        shares.join("comes and goes", 1.0, 2.0)
    assert abs(taken["waits"] - taken["comes and goes"]) <= 4.0


def test_what_others_leave_over_is_owed_for_a_quantum_only():
    shares = FairShares()
    for key in ("a", "b"):
        shares.join(key, 1.0, 2.0)
    shares.charge("a", 2.0)
    assert shares.spent() == {"a"}
    for _ in range(50):
        shares.charge("a", 1.5)
    assert shares.credit("a") == -2.0
    assert shares.spent() == {"a"}
    assert serve(shares, ["a", "b"], 0.5, rounds=8) == {"a": 0.0, "b": 4.0}
    assert serve(shares, ["a", "b"], 0.5, rounds=40)["a"] == 10.0


def test_a_turn_that_takes_longer_than_a_quantum_is_owed_in_full():
    shares = FairShares()
    for key in ("a", "b"):
        shares.join(key, 1.0, 2.0)
    shares.charge("a", 9.0)
    assert shares.credit("a") == -7.0
    assert serve(shares, ["a", "b"], 0.5, rounds=16) == {"a": 0.0, "b": 8.0}


def test_alone_a_key_has_credit_whatever_it_took():
    shares = FairShares()
    shares.join("a", 0.3, 1.0)
    for seconds in (0.1, 5.0, 100.0, 0.3):
        shares.charge("a", seconds)
        shares.settle(1.0)
        assert not shares.spent()


def test_everything_is_forgotten_when_there_is_nothing_to_do():
    shares = FairShares()
    shares.join("a", 1.0, 5.0)
    shares.charge("a", 7.0)
    shares.leave("a")
    shares.charge("a", 7.0)  # a tick that ended after its only job was cancelled
    assert shares.quantum == 0
    shares.join("a", 1.0, 1.0)
    assert shares.credit("a") == 1.0


def test_accounts_of_those_who_stay_away_are_closed():
    shares = FairShares()
    shares.join("stays", 1.0, 1.0)
    for number in range(100):
        shares.join(str(number), 1.0, 1.0)
        shares.charge(str(number), 2.0)
        shares.leave(str(number))
    assert shares.credit("7") == -1.0
    for _ in range(3):
        shares.charge("stays", 1.0)
        shares.settle(1.0)
    assert shares.credit("7") == 0.0, "as of a key that is not known"


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_is_a_positive_number(weight):
    with pytest.raises(ValueError, match="key 'a' has weight"):
        FairShares().join("a", weight, 1.0)
