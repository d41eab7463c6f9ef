"""Who comes in, who does not, and what a promise is worth."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from lens_serve.admission.admission import Admission, Refused
from lens_serve.admission.quotas import DAY_S
from lens_serve.config import AdmissionSettings
from lens_serve.engine.messages import StartPicture
from serve.admission.simulation import draw, key, predict

ADA, BOB = key("ada"), key("bob")


class World:
    """A device whose backlog is set by hand, and a clock."""

    def __init__(self, *, replicas=1, **settings):
        self.now, self.level, self.today = 1000.0, 0.0, 0.0
        self.replicas, self.slower = replicas, 1.0
        self.admission = Admission(
            AdmissionSettings(**settings),
            predict=lambda one: self.slower * predict(one),
            backlog_s=lambda: self.level,
            replicas=lambda: self.replicas,
            clock=lambda: self.now,
            wall=lambda: self.today,
        )

    def admit(self, seconds, *, key=ADA, prompt="a red circle", deadline=None, n=1, **how):
        draws = [draw(seconds, prompt=prompt, deadline=deadline, index=index) for index in range(n)]
        return self.admission.admit(key, draws, **how)

    def refused(self, seconds, **how):
        with pytest.raises(Refused) as caught:
            self.admit(seconds, **how)
        return caught.value


def test_the_backlog_counts_what_is_on_its_way_once():
    world = World()
    one = world.admit(2.0)
    assert world.admission.backlog_s == 2
    one.submitted()
    world.level = 2.0
    assert world.admission.backlog_s == 2
    world.level = 0.5
    one.release()
    one.release()
    assert world.admission.backlog_s == 0.5
    assert world.admission.inside == 0


def test_a_context_releases_also_after_an_error():
    world = World()
    with pytest.raises(ZeroDivisionError), world.admit(2.0):
        world.level = world.admission.inside / 0
    assert world.admission.inside == 0


def test_more_than_the_bound_has_to_wait_until_there_is_room():
    world = World()
    world.level = 9.5
    world.admit(0.5).submitted()
    refused = world.refused(1.0)
    assert (refused.code, refused.status, refused.retry) == ("queue_full", 429, True)
    assert refused.retry_after_s == pytest.approx(0.5)  # 9.5 less 9
    world.now += 0.5
    world.level = 9.0
    assert world.admit(1.0, ticket=refused.ticket)


def test_a_request_may_wait_as_long_as_it_takes_itself():
    """On a slow machine, one is drawn and one waits, though each takes longer than the bound."""
    world = World(max_backlog_s=10)
    world.admit(60.0)
    assert world.admit(60.0)
    refused = world.refused(60.0)
    assert refused.retry_after_s == pytest.approx(60.0)
    assert world.refused(1.0).code == "queue_full"


def test_replicas_share_the_work():
    world = World(replicas=4)
    for _ in range(10):
        world.admit(4.0)
    assert world.admission.backlog_s == 10
    assert world.refused(4.0).retry_after_s == pytest.approx(1.0)


def test_small_requests_do_not_wait_behind_many_of_their_kind():
    world = World(max_wait_factor=5)
    for _ in range(6):
        world.admit(0.1).submitted()
    world.level = 0.6
    assert world.refused(0.1).retry_after_s == pytest.approx(0.1)
    world.level = 8.0  # what is larger does not count: it goes later
    assert world.admit(1.0)
    assert world.refused(0.1).retry
    assert world.refused(0.11).retry
    assert world.admit(0.12)


def test_a_key_may_fill_the_queue_only_while_it_is_alone():
    world = World()
    held = [world.admit(1.0) for _ in range(8)]
    assert world.admit(1.0, key=BOB)
    assert world.refused(1.0).code == "queue_full"
    assert world.admit(1.0, key=BOB)
    for one in held[:4]:
        one.release()
    assert world.admit(1.0)


def test_refusals_are_spread_and_kept():
    """Each was promised its own time, at which it comes in whatever the backlog is."""
    world = World()
    world.level = 10.0
    refused = [world.refused(1.0, prompt=f"number {i}") for i in range(5)]
    times = [one.retry_after_s for one in refused]
    assert times == sorted(times)
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(times))
    world.level = 14.0
    for i, (one, at) in enumerate(zip(refused, times, strict=True)):
        world.now = 1000 + at + 0.1
        world.admit(1.0, prompt=f"number {i}", ticket=one.ticket).submitted()
    assert world.admission.promised == 0


def refusal(world, seconds=1.0, **how):
    world.level = 10.0
    return world.refused(seconds, **how)


def test_a_ticket_is_good_once():
    world = World()
    one = refusal(world)
    world.now += one.retry_after_s
    assert world.admit(1.0, ticket=one.ticket)
    again = world.refused(1.0, ticket=one.ticket)
    assert again.ticket != one.ticket


def test_a_ticket_is_no_good_before_its_time_and_is_not_lost_by_trying():
    world = World()
    one = refusal(world)
    world.now += one.retry_after_s - 0.01
    early = world.refused(1.0, ticket=one.ticket)
    assert early.ticket == one.ticket
    assert early.retry_after_s == pytest.approx(0.01)
    assert world.admission.promised == 1
    world.now += 0.01
    assert world.admit(1.0, ticket=one.ticket)


def test_who_comes_early_and_finds_room_gives_the_place_back():
    world = World()
    one = refusal(world)
    world.level = 0.0
    world.now += one.retry_after_s / 2
    assert world.admit(1.0, ticket=one.ticket)
    assert world.admission.promised == 0


def test_a_ticket_is_no_good_when_its_time_is_over():
    world = World(ticket_s=2.0)
    one = refusal(world)
    world.now += one.retry_after_s + 4  # a second for those who round up, and two that it is kept
    late = world.refused(1.0, ticket=one.ticket)
    assert late.ticket != one.ticket
    assert world.admission.promised == 1


def test_clients_that_read_whole_seconds_are_in_time():
    world = World(ticket_s=0.1)
    world.level = 9.1
    one = world.refused(1.0)
    assert one.retry_after_s == pytest.approx(0.1)
    world.now += 1.05
    assert world.admit(1.0, ticket=one.ticket)


def test_a_ticket_is_no_good_for_another_key():
    world = World()
    one = refusal(world)
    world.now += one.retry_after_s
    assert world.refused(1.0, key=BOB, ticket=one.ticket).ticket != one.ticket
    assert world.admit(1.0, ticket=one.ticket)


def test_a_ticket_is_no_good_for_more_than_was_asked():
    world = World()
    one = refusal(world)
    world.now += one.retry_after_s
    assert world.refused(1.01, ticket=one.ticket)
    assert world.refused(1.0, n=2, ticket=one.ticket)
    assert world.admit(0.5, prompt="something smaller", ticket=one.ticket)


def test_the_same_request_may_be_predicted_anew():
    """What is predicted is learnt meanwhile; the ticket was for this request."""
    world = World()
    one = refusal(world)
    world.now += one.retry_after_s
    world.slower = 1.3
    assert world.admit(1.0, ticket=one.ticket).solo_s == 1.3


def test_a_ticket_is_no_good_for_what_only_hashes_alike():
    """These two collide in Python's own hash of numbers, which is no secret and easily searched."""
    small, huge = (352, 352, 1, 18.88180829996492), (1440, 1440, 50, 11.015236036579479)
    assert hash(small) == hash(huge)
    world = World()

    def asking(height, width, steps, guidance):
        return msgspec.structs.replace(draw(1), height=height, width=width, steps=steps, guidance=guidance)

    world.level = 10.0
    with pytest.raises(Refused) as caught:
        world.admission.admit(ADA, [asking(*small)])
    world.now += caught.value.retry_after_s
    for ticket in (caught.value.ticket, None):
        with pytest.raises(Refused) as again:
            world.admission.admit(ADA, [asking(*huge)], ticket=ticket)
        assert again.value.ticket != caught.value.ticket
    assert world.admission.admit(ADA, [asking(*small)])


def test_what_is_repeated_has_the_same_start_picture():
    def asking(**start):
        return [msgspec.structs.replace(draw(1), start=StartPicture(**start) if start else None)]

    one = {"pixels": b"123", "mask": b"4", "strength": 0.5}
    world = World()
    world.level = 10.0
    with pytest.raises(Refused) as caught:
        world.admission.admit(ADA, asking(**one))
    world.now += caught.value.retry_after_s
    for other in ({}, one | {"pixels": b"12"}, one | {"mask": b"5"}, one | {"mask": None}, one | {"strength": 0.6}):
        with pytest.raises(Refused):
            world.admission.admit(ADA, asking(**other))
    assert world.admission.admit(ADA, asking(**one))


def test_tickets_cannot_be_made():
    world, other = World(), World()
    one, foreign = refusal(world), refusal(other)
    number, signature = one.ticket.split(".")
    assert foreign.ticket.split(".")[0] == number
    world.now += one.retry_after_s
    wrong = "0" if signature[0] != "0" else "1"
    made = [
        foreign.ticket,  # another process signed it
        f"{number}.{wrong}{signature[1:]}",
        f"{number}.{signature[:-1]}",
        f"2.{signature}",
        f"{number}.",
        signature,
        "",
        "é",
        10_000 * "a",
        f"{number}.{signature} ",
        f"{number}.{signature}\n",
    ]
    for ticket in made:
        assert world.refused(1.0, prompt="another", ticket=ticket).code == "queue_full"
    assert world.admit(1.0, ticket=one.ticket)


def test_clients_that_send_no_ticket_are_known_by_what_they_repeat():
    world = World()
    one = refusal(world)
    world.now += one.retry_after_s
    assert world.refused(1.0, prompt="another").retry
    assert world.refused(1.0, repeated=False).retry  # says that it comes for the first time
    assert world.refused(1.0, key=BOB).retry
    assert world.admit(1.0, repeated=True)
    world.refused(1.0, repeated=True)


def test_a_key_is_promised_a_part_and_not_for_ever():
    world = World()
    world.level = 10.0
    promised = []
    while (one := world.refused(1.0, prompt=f"number {len(promised)}")).retry:
        promised.append(one.retry_after_s)
    assert one.ticket is None
    assert one.retry_after_s > 60
    assert 20 <= len(promised) <= 31  # a second of every two, for a minute
    assert max(promised) <= 60
    assert world.refused(1.0, key=BOB).retry_after_s < 5  # who comes later finds some left


def test_promises_are_bounded_in_number():
    world = World(max_wait_factor=10_000)
    world.level = 10.0
    tickets = {world.refused(0.001, prompt=f"number {i}").ticket for i in range(300)}
    assert len(tickets - {None}) == 256
    for i in range(300):
        world.refused(0.001, key=BOB, prompt=f"number {i}")
    assert world.admission.promised == 512
    for late in (key("eve"), key("joe")):  # however many places others hold, a key may have one
        assert world.refused(0.001, key=late).ticket
        assert world.refused(0.001, key=late, prompt="another").ticket is None
    assert world.admission.promised == 514


def test_deadlines_that_cannot_be_met():
    world = World()
    alone = world.refused(2.0, deadline=world.now + 1.9)
    assert (alone.code, alone.status, alone.retry, alone.retry_after_s) == ("deadline", 504, False, None)
    assert alone.message == "This takes about 2.00 s even on an idle server, but deadline_ms allows only 1.90 s."
    for _ in range(3):
        world.admit(2.0)
    behind = world.refused(2.0, deadline=world.now + 7.9)
    assert (behind.code, behind.status) == ("deadline", 504)
    assert behind.message == "With what waits, this takes about 8.00 s, but deadline_ms allows only 7.90 s."
    assert "only 0.00 s" in world.refused(2.0, deadline=world.now - 1).message
    assert world.admit(2.0, deadline=world.now + 8.1)
    assert world.admit(0.1, deadline=world.now + 0.2)  # goes first
    assert world.admission.inside == 5


def test_draining():
    world = World()
    world.level = 4.0
    world.admission.draining = True
    refused = world.refused(0.1)
    assert (refused.code, refused.status, refused.retry_after_s) == ("draining", 503, 4.0)


def test_a_key_has_so_many_requests_at_once():
    world = World()
    few = key("few", max_concurrent=2)
    first = world.admit(3.0, key=few)
    world.admit(1.0, key=few)
    refused = world.refused(0.1, key=few)
    assert (refused.code, refused.status, refused.retry) == ("concurrency", 429, True)
    assert refused.retry_after_s == pytest.approx(1.0)
    assert world.admit(0.1)
    first.release()
    assert world.admit(0.1, key=few)


def test_images_of_a_day():
    world = World()
    world.today = 10 * DAY_S + 1000
    some = key("some", images_per_day=5)
    first = world.admit(0.1, key=some, n=4)
    refused = world.refused(0.1, key=some, n=2)
    assert (refused.code, refused.status, refused.retry) == ("quota_exceeded", 429, False)
    assert refused.message == "This asks for 2 images; 1 of today's 5 are left."
    assert refused.retry_after_s == DAY_S - 1000
    first.charge(0.1)
    first.charge(0.1)
    first.release()  # two of four were drawn: two come back
    assert world.refused(0.1, key=some, n=4).code == "quota_exceeded"
    world.admit(0.1, key=some, n=3).charge(0.3, images=3)
    assert world.refused(0.1, key=some).code == "quota_exceeded"
    assert world.admit(0.1)
    world.today += DAY_S
    assert world.admit(0.1, key=some, n=5)


def test_seconds_of_a_day():
    world = World()
    some = key("some", seconds_per_day=3.0)
    one = world.admit(1.0, key=some, n=2)
    refused = world.refused(1.1, key=some)
    assert refused.code == "quota_exceeded"
    assert refused.message == "This takes about 1.1 s; 1.0 s of today's 3 s are left."
    one.charge(0.2)  # it was quicker than predicted
    one.charge(0.3)
    one.release()
    slow = world.admit(1.0, key=some, n=2)
    slow.charge(2.6)  # and another was slower
    slow.release()
    assert world.refused(0.1, key=some).code == "quota_exceeded"


def test_what_failed_costs_nothing():
    world = World()
    some = key("some", images_per_day=1, seconds_per_day=1.0)
    for _ in range(3):
        world.admit(1.0, key=some).release()
    assert world.admit(1.0, key=some)


def test_a_refusal_sets_nothing_aside():
    world = World()
    some = key("some", images_per_day=1, max_concurrent=1)
    world.level = 10.0
    for _ in range(3):
        world.refused(1.0, key=some)
    world.level = 0.0
    world.now += 600
    assert world.admit(1.0, key=some)
