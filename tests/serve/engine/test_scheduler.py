"""Who takes the next step: in the promised order, within the promised bounds, whatever arrives and leaves when."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lens_serve.config import EngineSettings
from lens_serve.engine.cost import Branch, CostModel
from lens_serve.engine.messages import Costs
from lens_serve.engine.scheduler import Entry, Scheduler

COST = CostModel(
    Costs(
        per_image=2.7e9,
        per_text=2.7e9,
        per_square=3e5,
        tick_s=4e-3,
        flops_per_s=6e14,
        half_tokens=350.0,
        encode_s=0.01,
        encode_token_s=0.0,
        decode_s=1e-3,
        decode_pixel_s=2.5e-8,
    )
)
KNEE = 4300
MOST = 4.5 * KNEE
IDS = itertools.count()


def job(side=512, steps=4, *, branches=1, arrived=0.0, group="g", **known):
    image = (side // 16) ** 2
    return Entry(
        id=str(next(IDS)),
        model="lens",
        group=group,
        sequences=(Branch(image, 100), Branch(image, 0))[:branches],
        steps=steps,
        pixels=side * side,
        arrived=arrived,
        **known,
    )


def scheduler_of(*jobs, costs=COST, knee=KNEE, **options):
    scheduler = Scheduler(EngineSettings.model_validate(options), {"lens": costs}, {"lens": knee})
    for entry in jobs:
        scheduler.add(entry)
    return scheduler


def tokens_of(members):
    return sum(sequence.tokens for entry in members for sequence in entry.next_sequences)


def steps_of(entry):
    """What each step of a job is made of."""
    lean = entry.sequences[:1] if entry.reuses_guidance else entry.sequences
    return [lean if number % 2 else entry.sequences for number in range(entry.steps)]


def solo_s(entry):
    return sum(map(COST.tick_s, steps_of(entry)[entry.taken :])) + COST.decode_s(entry.pixels)


def tick(scheduler, now):
    """Take one; returns its members, those of them that are done, and when it ends."""
    members = scheduler.next_tick(now)
    seconds = COST.tick_s(sequence for entry in members for sequence in entry.next_sequences)
    scheduler.took(members, seconds, now + seconds)
    now += seconds
    done = []
    for entry in members:
        entry.taken += 1
        if not entry.steps_left:
            assert scheduler.remove(entry.id) is entry
            now += COST.decode_s(entry.pixels)
            done.append(entry)
    return members, done, now


def run(scheduler, arrivals, until=float("inf")):
    """Let jobs arrive and be done; returns when each was done, and the members of every tick."""
    now, done, ticks = 0.0, {}, []
    coming = sorted(arrivals, key=lambda entry: entry.arrived)
    while (coming or len(scheduler)) and now < until:
        if not len(scheduler):
            now = max(now, coming[0].arrived)
        while coming and coming[0].arrived <= now:
            scheduler.add(coming.pop(0))
        members, finished, now = tick(scheduler, now)
        ticks.append([entry.id for entry in members])
        done |= dict.fromkeys((entry.id for entry in finished), now)
    return done, ticks


JOBS = st.builds(
    job,
    side=st.sampled_from([256, 512, 1024, 1440]),
    steps=st.integers(1, 6),
    branches=st.integers(1, 2),
    arrived=st.floats(0, 2),
    group=st.sampled_from(["plain", "lora"]),
    reuses_guidance=st.booleans(),
    key=st.sampled_from(["a", "b", "c"]),
)


def test_nothing_to_do():
    scheduler = scheduler_of()
    assert scheduler.next_tick(0.0) == []
    assert scheduler.backlog_s() == 0
    assert scheduler.expired(1e9) == []
    assert scheduler.remove("unknown") is None
    assert len(scheduler) == 0


def test_who_is_done_soonest_goes_first():
    long, short, half_done = job(1024, 20, branches=2), job(1024, 4), job(1024, 20)
    half_done.taken = 18
    scheduler = scheduler_of(long, short, half_done)
    done, _ = run(scheduler, [])
    assert sorted(done, key=done.get) == [half_done.id, short.id, long.id]


def test_a_newcomer_overtakes_between_two_steps():
    long, short = job(1024, 20, branches=2), job(1024, 4, arrived=0.1)
    done, ticks = run(scheduler_of(), [long, short])
    first = ticks.index([short.id])
    assert [long.id] in ticks[:first]
    assert ticks[first : first + 4] == [[short.id]] * 4
    assert done[short.id] < 0.1 + solo_s(job(1024, 4)) + COST.tick_s(long.sequences) + 1e-9


def test_waiting_gives_a_little_precedence():
    """0.02 s of precedence for each second: a job that is 0.1 s longer goes first when it has waited 5 s more."""
    short, long = job(512, 4), job(512, 8)
    ahead_s = solo_s(long) - solo_s(short)
    for waited, first in ((0.98 * ahead_s / 0.02, short), (1.02 * ahead_s / 0.02, long)):
        short.arrived = 100.0
        long.arrived = 100.0 - waited
        assert scheduler_of(long, short, knee=1, starvation=1e9).next_tick(100.0) == [first]


def test_a_tick_is_filled_to_the_knee_and_passes_over_what_does_not_fit():
    small = [job(512, 4, arrived=number / 1000) for number in range(5)]
    large, tiny = job(1024, 4), job(256, 40)
    assert tokens_of([*small[:3], tiny]) < KNEE < tokens_of(small[:4])
    assert scheduler_of(large, tiny, *small).next_tick(0.1) == [*small[:3], tiny]


@pytest.mark.parametrize(("backlog_s", "factor"), [(0.5, 1.0), (1.5, 2.0), (3.5, 2.0), (4.5, 4.5), (100.0, 4.5)])
def test_the_knee_grows_with_the_backlog(backlog_s, factor):
    small = [job(512, 4) for _ in range(30)]
    own_s = sum(map(solo_s, small))
    scale = backlog_s / own_s  # the same jobs on a slower device
    slow = CostModel(
        Costs(
            per_image=2.7e9,
            per_text=2.7e9,
            per_square=3e5,
            tick_s=scale * 4e-3,
            flops_per_s=6e14 / scale,
            half_tokens=350.0,
            encode_s=0.0,
            encode_token_s=0.0,
            decode_s=scale * 1e-3,
            decode_pixel_s=scale * 2.5e-8,
        )
    )
    scheduler = scheduler_of(*small, costs=slow)
    assert scheduler.backlog_s() == pytest.approx(backlog_s)
    assert len(scheduler.next_tick(0.0)) == int(factor * KNEE // tokens_of(small[:1]))
    assert len(scheduler_of(*small, costs=slow, stretch=[1.5]).next_tick(0.0)) == 5
    assert len(scheduler_of(*small, costs=slow, stretch=[1.0, 3.0]).next_tick(0.0)) == (3 if factor == 1 else 11)


@settings(deadline=None)
@given(jobs=st.lists(JOBS, min_size=1, max_size=12))
def test_members_share_a_group_and_fit_the_stretched_knee(jobs):
    entries = {entry.id: entry for entry in jobs}
    steps = {entry.id: entry.steps_left for entry in jobs}
    done, ticks = run(scheduler_of(), jobs)
    assert set(done) == set(entries)
    for members in ticks:
        assert len(set(members)) == len(members) > 0
        assert len({entries[id].group for id in members}) == 1
        assert len(members) == 1 or tokens_of([entries[id] for id in members]) <= MOST
    for id, taken in steps.items():
        assert sum(id in members for members in ticks) == taken


@settings(deadline=None)
@given(jobs=st.lists(JOBS, min_size=1, max_size=12))
def test_first_come_is_serial(jobs):
    done, ticks = run(scheduler_of(policy="first-come"), jobs)
    order = [entry.id for entry in sorted(jobs, key=lambda entry: entry.arrived)]
    assert [id for id, _ in itertools.groupby(ticks)] == [[id] for id in order]
    assert sorted(done, key=done.get) == order


def test_first_come_ends_what_was_begun_before_what_came_earlier():
    """A job whose engine died comes back with the time at which it arrived."""
    begun, earlier = job(512, 3, arrived=2.0), job(512, 2, arrived=1.0)
    scheduler = scheduler_of(begun, policy="first-come")
    tick(scheduler, 2.0)
    scheduler.add(earlier)
    assert [tick(scheduler, 2.0)[0] for _ in range(4)] == [[begun], [begun], [earlier], [earlier]]


def test_same_shape_is_the_head_of_the_queue_as_long_as_it_is_alike():
    alike = [job(512, 4, branches=2, arrived=number) for number in range(6)]
    other = job(512, 5, branches=2, arrived=2.5)
    _, ticks = run(scheduler_of(*alike, other, policy="same-shape"), [])
    ids = [entry.id for entry in alike]
    assert ticks == [ids[:3]] * 4 + [[other.id]] * 5 + [ids[3:]] * 4
    many = [job(512, 4, branches=2, arrived=number) for number in range(6)]
    assert scheduler_of(*many, policy="same-shape").next_tick(9.0) == many[:4], "eight sequences at most"


@pytest.mark.parametrize("change", [{"side": 256}, {"branches": 2}, {"group": "lora"}, {"steps": 5}])
def test_same_shape_looks_at_all_of_the_shape(change):
    first, other = job(512, 4), job(**{"side": 512, "steps": 4, **change}, arrived=1.0)
    assert scheduler_of(first, other, policy="same-shape").next_tick(2.0) == [first]


# Nobody starves.


def patience(entry, factor):
    return entry.arrived + factor * solo_s(entry)


FEW = st.lists(
    st.builds(job, side=st.sampled_from([256, 1024, 1440]), steps=st.integers(1, 6), arrived=st.floats(0, 2)),
    min_size=1,
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(jobs=FEW, factor=st.floats(1.1, 5))
def test_every_job_is_done_within_the_bound_of_the_guard(jobs, factor):
    """Once its patience is over, only those whose ended earlier go before it, and they are here already."""
    bound = {
        entry.id: patience(entry, factor)
        + sum(COST.decode_s(other.pixels) for other in jobs)
        + longest_s()
        * (1 + sum(other.steps_left for other in jobs if patience(other, factor) <= patience(entry, factor)))
        for entry in jobs
    }
    done, _ = run(scheduler_of(starvation=factor), jobs)
    assert all(done[id] <= most for id, most in bound.items())


def longest_s():
    """No tick takes longer: one of the stretched knee, in as long a sequence as there is."""
    largest = [Branch(90 * 90, 100)] * 2
    return max(COST.tick_s(largest), COST.tick_s([Branch(int(MOST) // 2, 0)] * 2))


@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_a_large_job_is_not_pushed_back_forever(factor):
    """Small jobs come as fast as they can be done, and each is shorter than what is left of the large one."""

    def run_among_small(**options):
        large = job(1440, 20, branches=2)
        limit = patience(large, factor)
        every_s = 1.01 * solo_s(job(1024, 1))
        small = [job(1024, 1, arrived=number * every_s) for number in range(1000)]
        done, _ = run(scheduler_of(ageing=0, **options), [large, *small])
        return done[large.id], limit, max(done.values())

    done_at, limit, _ = run_among_small(starvation=factor)
    assert limit < done_at < limit + 2 * solo_s(job(1440, 20, branches=2))
    done_at, _, end = run_among_small(starvation=1e9)
    assert done_at == end > 50


# Keys.


def always_busy(scheduler, wanted, seconds):
    """Keep jobs of each key waiting, and count the seconds by key; `wanted` maps a key to a function that makes one."""
    now, taken, waiting = 0.0, dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, 0)
    while now < seconds:
        for key, make in wanted.items():
            for _ in range(6 - waiting[key]):
                scheduler.add(make(now, key))
            waiting[key] = 6
        members, done, after = tick(scheduler, now)
        whole = sum(COST.flops(sequence) for entry in members for sequence in entry.sequences)
        for entry in members:
            taken[entry.key] += (after - now) * sum(map(COST.flops, entry.sequences)) / whole
        for entry in done:
            waiting[entry.key] -= 1
        now = after
    return taken


@pytest.mark.parametrize("sizes", [(1024, 1024), (512, 1024), (1024, 512)], ids=str)
def test_twice_the_weight_is_twice_the_seconds(sizes):
    weights, sides = {"heavy": 2.0, "light": 1.0}, dict(zip(("heavy", "light"), sizes, strict=True))

    def make(now, key):
        return job(sides[key], 4, arrived=now, key=key, weight=weights[key])

    scheduler = scheduler_of(gone := job(key="gone"))
    scheduler.add(make(0.0, "light"))
    scheduler.remove(gone.id)
    taken = always_busy(scheduler, dict.fromkeys(weights, make), 120)
    assert taken["heavy"] / taken["light"] == pytest.approx(2.0, rel=0.08)


@settings(max_examples=15, deadline=None)
@given(weights=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=4))
def test_seconds_are_shared_by_weight(weights):
    by_key = {str(number): weight for number, weight in enumerate(weights)}

    def make(now, key):
        return job(1024, 4, arrived=now, key=key, weight=by_key[key])

    taken = always_busy(scheduler_of(), dict.fromkeys(by_key, make), 60)
    for key, weight in by_key.items():
        assert taken[key] / sum(taken.values()) == pytest.approx(weight / sum(weights), rel=0.15)


def test_while_nobody_has_used_up_his_share_keys_make_no_difference():
    lots = random.Random(5)
    jobs = [job(lots.choice([512, 1024]), lots.randint(1, 20), arrived=lots.random()) for _ in range(40)]
    alone = scheduler_of(*jobs).next_tick(1.0)
    for number, entry in enumerate(jobs):
        entry.key = str(number)
    assert scheduler_of(*jobs).next_tick(1.0) == alone


def test_the_order_within_a_key_is_kept_among_others():
    lots = random.Random(6)
    jobs = [job(1024, lots.randint(1, 30), key=lots.choice("ab")) for _ in range(30)]
    length = {entry.id: entry.steps_left for entry in jobs}
    done, _ = run(scheduler_of(*jobs, knee=1, starvation=1e9), [])
    for key in "ab":
        own = sorted((entry.id for entry in jobs if entry.key == key), key=done.get)
        assert [length[id] for id in own] == sorted(length[id] for id in own)


def test_who_floods_keeps_others_waiting_for_a_round_at_most():
    """His jobs are shorter, and have waited far longer than is their due."""
    flood = [job(512, 4, key="flood") for _ in range(400)]
    other = job(1024, 4, arrived=8.0, key="other")
    done, _ = run(scheduler_of(), [*flood, other])
    quantum = 2 * solo_s(job(1024, 4))
    assert done[other.id] - 8.0 < quantum + 4 * longest_s() + 0.2
    assert sum(at > done[other.id] for at in done.values()) > 100
    for entry in flood:
        entry.key, entry.taken = "other", 0
    other.taken = 0
    done, _ = run(scheduler_of(starvation=1e9, ageing=0), [*flood, other])
    assert max(done, key=done.get) == other.id, "with the same key, it comes last"


def test_what_a_key_without_credit_piled_up_does_not_make_ticks_long():
    flood = [job(512, 4, key="flood") for _ in range(400)]
    scheduler = scheduler_of(*flood)
    assert tokens_of(scheduler.next_tick(0.0)) > 2 * KNEE
    scheduler.add(other := job(512, 4, key="other"))
    scheduler.took(flood[:1], 100.0, 1.0)
    members = scheduler.next_tick(1.0)
    assert members == [other, *flood[:2]], "up to the knee as it is"


def test_a_tick_is_charged_by_flops():
    """The tick takes 1.2 times a round's credit; more than the credit itself is the large job's part of it."""
    large, small = job(1024, 5, key="large"), job(256, 10, key="small")
    assert solo_s(small) < solo_s(large)
    credit = 2 * solo_s(large)
    scheduler = scheduler_of(large, small)
    assert scheduler.next_tick(0.0) == [small]
    scheduler.took([large, small], 1.2 * credit, 0.0)
    large.taken = 4
    assert solo_s(large) < solo_s(small)
    assert scheduler.next_tick(0.0)[0] is small
    scheduler.took([small], credit, 0.0)
    assert scheduler.next_tick(0.0)[0] is large


def test_a_fast_job_is_predicted_and_charged_what_it_takes():
    """Each of its ticks is shared with a job that takes both branches in all steps; they are charged by their part."""
    fast, whole = (job(512, 7, branches=2, key=key, reuses_guidance=key == "fast") for key in ("fast", "whole"))
    scheduler = scheduler_of(fast)
    alone_s = scheduler.backlog_s()
    scheduler.add(whole)
    assert solo_s(whole) > 1.1 * alone_s == pytest.approx(1.1 * solo_s(fast))
    first, second = map(COST.flops, fast.sequences)
    for number in range(7):
        before = {key: scheduler._shares.credit(key) for key in ("fast", "whole")}
        assert tokens_of([fast]) == sum(sequence.tokens for sequence in fast.sequences[: 2 - number % 2])
        assert scheduler.backlog_s() == pytest.approx(solo_s(fast) + solo_s(whole))
        scheduler.took([fast, whole], 1e-3, 0.0)
        own = first + second * (number % 2 == 0)
        charged = before["fast"] - scheduler._shares.credit("fast")
        assert charged == pytest.approx(1e-3 * own / (own + first + second))
        assert charged + before["whole"] - scheduler._shares.credit("whole") == pytest.approx(1e-3)
        fast.taken = whole.taken = number + 1


def test_a_fast_job_leaves_room_in_its_lean_steps():
    fast, short = job(1024, 4, branches=2, reuses_guidance=True), job(256, 1)
    scheduler = scheduler_of(fast, short, knee=tokens_of([short]) + fast.sequences[0].tokens, stretch=[1.0])
    ticks = []
    for fast.taken in range(4):
        ticks.append(scheduler.next_tick(0.0))
    assert ticks == [[short], [short, fast]] * 2


def test_weights_are_positive_and_ids_unique():
    scheduler = scheduler_of(first := job())
    with pytest.raises(ValueError, match="ids are unique"):
        scheduler.add(first)
    with pytest.raises(ValueError, match="weight 0"):
        scheduler.add(job(weight=0.0))
    assert len(scheduler) == 1
    assert scheduler.remove(first.id) is first
    assert scheduler.next_tick(0.0) == []


# Deadlines.


def test_expired_are_those_past_their_deadline_and_those_that_cannot_make_it():
    takes = solo_s(job(1024, 4))
    fine, hopeless, past, none = (
        job(1024, 4, deadline=deadline) for deadline in (10 + 1.01 * takes, 10 + 0.99 * takes, 9.0, None)
    )
    scheduler = scheduler_of(fine, hopeless, past, none)
    assert scheduler.expired(10.0) == [hopeless, past]
    hopeless.taken = 1
    assert scheduler.expired(10.0) == [past]


def test_predictions_that_were_learnt_meanwhile_count():
    cost = CostModel(COST.costs())
    entry = job(1024, 4)
    scheduler = scheduler_of(entry, costs=cost)
    before = scheduler.backlog_s()
    for _ in range(100):
        cost.observe_tick(entry.sequences, 3 * COST.tick_s(entry.sequences))
        cost.observe_decode(entry.pixels, 3 * COST.decode_s(entry.pixels))
    assert scheduler.backlog_s() == pytest.approx(3 * before, rel=0.01)


class AnythingAtAnyTime(RuleBasedStateMachine):
    """Jobs come, take steps, are cancelled; the books stay right."""

    @initialize(policy=st.sampled_from(["remaining-time", "first-come", "same-shape"]))
    def begin(self, policy):
        self.scheduler, self.here, self.now = scheduler_of(policy=policy), {}, 0.0
        self.members = []

    @rule(entry=JOBS, late=st.floats(-3, 3))
    def add(self, entry, late):
        entry.arrived = self.now + late
        self.scheduler.add(entry)
        self.here[entry.id] = entry

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def remove(self, data):
        id = data.draw(st.sampled_from(sorted(self.here)))
        assert self.scheduler.remove(id) is self.here.pop(id)
        assert self.scheduler.remove(id) is None

    @rule()
    def choose(self):
        self.members = self.scheduler.next_tick(self.now)
        assert bool(self.members) == bool(self.here)
        assert all(self.here[entry.id] is entry for entry in self.members)

    @precondition(lambda self: self.members)
    @rule()
    def take(self):
        """Some members may have been removed since they were chosen."""
        self.now += 0.1
        self.scheduler.took(self.members, 0.1, self.now)
        for entry in self.members:
            entry.taken += 1
            if entry.steps_left <= 0 and self.here.pop(entry.id, None):
                self.scheduler.remove(entry.id)
        self.members = []

    @invariant()
    def books_are_right(self):
        if not hasattr(self, "here"):
            return
        assert len(self.scheduler) == len(self.here)
        by_hand = [
            sum(COST.tick_s(sequences) for sequences in steps_of(entry)[entry.taken :]) + COST.decode_s(entry.pixels)
            for entry in self.here.values()
        ]
        assert self.scheduler.backlog_s() == pytest.approx(sum(by_hand))


AnythingAtAnyTime.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestAnythingAtAnyTime = AnythingAtAnyTime.TestCase


def test_work_grows_with_the_jobs_only():
    """Predictions of a tick among many jobs are counted, not seconds."""
    asked = 0

    class Counting(CostModel):
        def seconds(self, price):
            nonlocal asked
            asked += 1
            return super().seconds(price)

    counts = []
    for many in (100, 1000):
        lots = random.Random(many)
        scheduler = scheduler_of(costs=Counting(COST.costs()))
        for _ in range(many):
            scheduler.add(job(lots.choice([256, 512, 1024]), lots.randint(1, 20), key=lots.choice("abc")))
        asked = 0
        assert len(scheduler.next_tick(1.0)) > 1
        counts.append(asked)
    assert counts == [200, 2000], "each job's step and decoding, once"
