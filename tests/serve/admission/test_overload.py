"""Far more comes than can be drawn. Clients that do as they are told get in, and the device never rests."""

from __future__ import annotations

import random

import pytest

from lens_serve.config import AdmissionSettings
from serve.admission.simulation import Client, Simulation, key, overload


@pytest.mark.parametrize(("keys", "speed"), [(1, 1.0), (4, 1.0), (2, 0.7), (2, 1.5)])
def test_five_times_too_much(keys, speed):
    simulation = Simulation(speed=speed)
    clients = overload(simulation, load=5, seconds=200, keys=[key(f"k{i}") for i in range(keys)])
    promised = [client for client in clients if client.told]
    assert len(promised) > 200
    assert sum(client.outcome == "admitted" for client in promised) >= 0.97 * len(promised)
    assert simulation.goodput(200) >= 0.95
    assert simulation.highest_s < 20
    # The others were told that coming again is of no use.
    assert sum(client.outcome != "admitted" and not client.told for client in clients) > 500


@pytest.mark.parametrize("comes_again", [0.0, 0.3])
def test_most_of_those_who_were_promised_a_place_do_not_come(comes_again):
    """Their places go to others: the device does not wait for them."""
    simulation = Simulation()
    clients = overload(simulation, load=5, seconds=200, keys=[key("a"), key("b")], comes_again=comes_again)
    came = [client for client in clients if client.told and client.comes_again]
    assert sum(client.outcome == "admitted" for client in came) >= 0.97 * len(came)
    assert simulation.goodput(200) >= 0.95


def test_small_requests_are_never_served_late():
    """What gets in waits, at 99 of 100, no more than `max_wait_factor` times the time that it takes alone."""
    simulation = Simulation(AdmissionSettings(max_wait_factor=20))
    clients = overload(simulation, load=5, seconds=200, keys=[key("a"), key("b")])
    small = [client for client in clients if client.outcome == "admitted" and client.seconds <= 0.16]
    assert len(small) > 200
    assert sum(client.waited <= 21 * client.seconds for client in small) >= 0.99 * len(small)


def test_hardly_anybody_is_refused_when_there_is_enough():
    simulation = Simulation()
    clients = overload(simulation, load=0.7, seconds=600, keys=[key("a"), key("b")])
    assert sum(client.outcome == "admitted" for client in clients) >= 0.999 * len(clients)


def test_who_asks_little_does_not_wait_for_who_asks_much():
    """One key floods the server for a minute; then another comes with a request now and then."""
    simulation = Simulation()
    rng = random.Random(2)
    now = 0.0
    while now < 120:
        now += rng.expovariate(10)
        simulation.at(now, Client(key("flood"), 0.5, number=round(1000 * now)))
    guests = [Client(key("guest"), 0.5, number=-number) for number in range(1, 21)]
    for number, guest in enumerate(guests):
        simulation.at(60 + 3 * number, guest)
    simulation.run()
    assert all(guest.outcome == "admitted" for guest in guests)
    assert sum(guest.told.retry_after_s for guest in guests if guest.told) <= 5
    assert simulation.goodput(120) >= 0.95


def test_keys_share_by_weight():
    simulation = Simulation()
    heavy, light = key("heavy", weight=3.0), key("light")
    clients = overload(simulation, load=6, seconds=200, keys=[heavy, light])
    got = {one: sum(c.seconds for c in clients if c.key is one and c.outcome == "admitted") for one in (heavy, light)}
    assert got[heavy] > 1.3 * got[light]
