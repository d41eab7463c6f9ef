"""All engines as one: who draws what, and what happens to jobs whose engine is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import aclosing

import psutil
import pytest

from lens_core.errors import LensError
from lens_serve.engine import client as client_module
from lens_serve.engine import engines as engines_module
from lens_serve.engine.cost import Branch, CostModel
from lens_serve.engine.engines import EngineError, Engines, Glimpse, Picture, Step
from lens_serve.engine.forecast import Forecast
from lens_serve.engine.messages import StartPicture
from serve.engine.process import children
from serve.engine.scripted_engine import COMMAND, COSTS, INFO, draw, running, settings, soon, until


@pytest.fixture(autouse=True)
def _no_process_is_left(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_S", 0.01)
    before = children()
    yield
    assert children() <= before


def engines(*options, patience_s=60.0, **engine):
    return Engines(settings(**engine), command=(*COMMAND, *options), patience_s=patience_s)


async def events_of(engines, wanted):
    return [event async for event in engines.draw(wanted)]


async def picture_of(engines, wanted):
    return (await events_of(engines, wanted))[-1]


async def reason_of(engines, wanted):
    """Why a picture is not drawn; "drawn" if it is."""
    try:
        await events_of(engines, wanted)
    except EngineError as error:
        return error.reason
    return "drawn"


def test_from_start_to_stop():
    async def scenario():
        made = engines()
        assert not made.is_ready
        assert made.models == {}
        assert made.backlog_s() == 0.0
        with pytest.raises(KeyError):
            made.cost("lens")
        await made.start()
        await made.ready()
        assert made.is_ready
        assert made.models == {"lens": INFO}
        assert made.cost("lens").costs() == COSTS
        events = await events_of(made, draw(seed=9, previews=1))
        assert [type(event) for event in events] == [Step, Glimpse, Step, Step, Step, Picture]
        assert events[-1].image_HW3[3, 4, 1] == 9
        (state,) = made.states
        assert psutil.pid_exists(state.pid)
        assert (state.is_ready, state.device, state.restarts, state.jobs) == (True, "none", 0, 0)
        assert state.heartbeat_age_s < 60
        assert state.cost_error == {"lens": 0.0}
        await made.stop()
        assert not made.is_ready
        assert made.states[0].pid is None
        assert made.states[0].heartbeat_age_s is None
        assert made.models == {"lens": INFO}
        assert await reason_of(made, draw()) == "unavailable"

    asyncio.run(scenario())


def test_jobs_go_where_the_least_work_is():
    async def scenario():
        async with running(engines(replicas=2)) as made:
            await until(lambda: all(state.is_ready for state in made.states))
            drawings = [made.draw(draw("hold", steps=steps)) for steps in (40, 10, 10, 10)]
            for drawing in drawings:
                await anext(drawing)
            assert sorted(state.jobs for state in made.states) == [1, 3]
            assert made.backlog_s() == pytest.approx(min(state.backlog_s for state in made.states))
            for drawing in drawings:
                await drawing.aclose()
            assert made.backlog_s() == 0.0

    asyncio.run(scenario())


def test_backlog_is_what_is_left_to_do():
    async def scenario():
        async with running(engines()) as made:
            wanted = draw("hold", steps=4)  # 24 tokens: 0.34 s a step; encoding takes 0.5 s, decoding 0.25 s
            assert made.predict_s(wanted) == pytest.approx(0.5 + 4 * 0.34 + 0.25)
            async with aclosing(made.draw(wanted)) as drawing:
                assert await anext(drawing) == Step(step=1, steps=4)
                step_s = made.cost("lens").tick_s([Branch(24, 1)])
                assert made.backlog_s() == pytest.approx(3 * step_s + 0.25)
            assert made.backlog_s() == 0.0

    asyncio.run(scenario())


def test_a_job_in_company_takes_its_part_of_the_ticks():
    cost = CostModel(COSTS)
    asked = {"height": 16, "width": 16, "guidance": 2.0, "negative": "bad"}
    forecast = Forecast(draw("four chars and more", **asked), INFO)
    branches = [Branch(16, 5), Branch(16, 1)]
    common = {"steps_left": 4, "begun": False, "knee_tokens": 38 * 5}
    solo_s = cost.solo_s(branches, 4, 256)
    assert forecast.solo_s(cost) == pytest.approx(solo_s)
    assert forecast.remaining_s(cost, jobs=1, **common) == pytest.approx(solo_s)
    for jobs, packed in ((3, 3), (5, 5), (50, 5)):
        whole = 0.5 * packed + 4 * cost.tick_s(branches * packed) + 0.25 * packed
        assert packed * forecast.remaining_s(cost, jobs=jobs, **common) == pytest.approx(whole)
    exact = Forecast(draw("four chars and more", tier="exact", **asked), INFO)
    assert exact.remaining_s(cost, jobs=9, **common) == pytest.approx(solo_s)


def test_a_forecast_heeds_what_was_learnt():
    forecast, cost = Forecast(draw(), INFO), CostModel(COSTS)
    common = {"steps_left": 4, "begun": True, "knee_tokens": 1, "jobs": 1}
    before = forecast.remaining_s(cost, **common)
    for _ in range(50):
        cost.observe_tick([Branch(24, 2)], 2 * cost.tick_s([Branch(24, 2)]))
    assert forecast.remaining_s(cost, **common) > 1.5 * before


def test_a_fast_job_takes_its_second_branch_in_every_other_step():
    cost, asked = CostModel(COSTS), {"steps": 5, "guidance": 3.0, "negative": "bad"}
    fast, whole = (Forecast(draw(tier=tier, **asked), INFO) for tier in ("fast", "lossless"))
    branches = [Branch(24, 2), Branch(24, 1)]
    both_s, first_s = cost.tick_s(branches), cost.tick_s(branches[:1])
    assert fast.solo_s(cost) == pytest.approx(0.5 + 3 * both_s + 2 * first_s + 0.25)
    assert whole.solo_s(cost) == pytest.approx(0.5 + 5 * both_s + 0.25)
    common = {"begun": True, "jobs": 1, "knee_tokens": 96}
    for steps_left, steps_s in enumerate([0, both_s, both_s + first_s, 2 * both_s + first_s]):
        assert fast.remaining_s(cost, steps_left=steps_left, **common) == pytest.approx(steps_s + 0.25)
    unguided = [Forecast(draw(tier=tier, guidance=1.0), INFO).solo_s(cost) for tier in ("fast", "lossless")]
    assert unguided[0] == unguided[1]


def test_a_start_leaves_fewer_steps():
    cost = CostModel(COSTS)
    whole, half = (
        Forecast(draw(steps=4), INFO),
        Forecast(draw(steps=8, start=StartPicture(pixels=b"", strength=0.5)), INFO),
    )
    assert (whole.steps, half.steps) == (4, 4)
    assert half.solo_s(cost) == pytest.approx(whole.solo_s(cost) + 0.25)  # it is encoded, as long as decoded
    begun = {"steps_left": 4, "begun": True, "jobs": 1, "knee_tokens": 1}
    assert half.remaining_s(cost, **begun) == pytest.approx(whole.remaining_s(cost, **begun))


def test_a_lost_engines_jobs_are_drawn_again():
    async def scenario():
        async with running(engines()) as made:
            jobs = [draw(f"die once {seed}" if seed == 3 else "a cat", seed=seed, previews=2) for seed in range(6)]
            heard = await asyncio.gather(*(events_of(made, job) for job in jobs))
            assert [events[-1].image_HW3[0, 0, 0] for events in heard] == list(range(6))
            for events in heard:  # nothing is heard twice, and nothing goes backwards
                steps = [event.step for event in events if isinstance(event, Step)]
                assert steps == [1, 2, 3, 4]
                assert [event.number for event in events if isinstance(event, Glimpse)] == [0, 1]
            assert made.states[0].restarts == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_job_that_ends_engines_takes_no_other_with_it(replicas):
    async def scenario():
        async with running(engines(replicas=replicas)) as made:
            innocent = [draw(seed=seed) for seed in range(6)]
            guilty = draw("die")
            reasons = await asyncio.gather(*(reason_of(made, job) for job in [*innocent[:3], guilty, *innocent[3:]]))
            assert reasons == ["drawn"] * 3 + ["lost"] + ["drawn"] * 3
            assert sum(state.restarts for state in made.states) + (not all(s.is_ready for s in made.states)) >= 1
            await until(lambda: all(state.is_ready for state in made.states))
            assert await reason_of(made, draw()) == "drawn"

    asyncio.run(scenario())


def test_another_engine_takes_over():
    async def scenario():
        async with running(engines(replicas=2)) as made:
            await until(lambda: all(state.is_ready for state in made.states))
            jobs = [asyncio.create_task(picture_of(made, draw(seed=seed, steps=20))) for seed in range(8)]
            await until(lambda: all(state.jobs for state in made.states))
            os.kill(killed := made.states[1].pid, signal.SIGKILL)
            await until(lambda: made.states[1].pid != killed)
            assert made.is_ready
            pictures = await asyncio.gather(*jobs)
            assert [picture.image_HW3[0, 0, 0] for picture in pictures] == list(range(8))

    asyncio.run(scenario())


@pytest.mark.parametrize("replicas", [1, 2])
def test_what_a_lost_engine_owed_is_drawn_or_refused_within_five_seconds(replicas):
    """Of the kill; with one engine its successor draws them, which is loaded in no time here."""

    async def scenario():
        async with running(engines(replicas=replicas)) as made:

            async def measure():
                await until(lambda: all(state.is_ready for state in made.states))
                jobs = [asyncio.create_task(reason_of(made, draw(seed=seed, steps=20))) for seed in range(8)]
                await until(lambda: all(state.jobs for state in made.states))
                killed_at = time.monotonic()
                os.kill(made.states[0].pid, signal.SIGKILL)
                assert await asyncio.gather(*jobs) == ["drawn"] * 8
                return time.monotonic() - killed_at

            async def measure_guilty():
                await until(lambda: all(state.is_ready for state in made.states))
                drawing = made.draw(draw("die"))
                await anext(drawing)  # its only step; then it kills
                begun_at = time.monotonic()
                with pytest.raises(EngineError, match="lost twice"):
                    await anext(drawing)
                return time.monotonic() - begun_at

            await soon(measure, 5.0)
            await soon(measure_guilty, 5.0)

    asyncio.run(scenario())


def test_jobs_wait_for_an_engine_but_not_for_ever():
    async def scenario():
        async with running(engines("--mute", patience_s=0.2), ready=False) as made:
            assert await reason_of(made, draw()) == "unavailable"
            assert await reason_of(made, draw(deadline=time.monotonic() + 0.05)) == "deadline"
            assert await reason_of(made, draw(deadline=time.monotonic() - 1)) == "deadline"
        async with running(engines("--seconds=0.5"), ready=False) as made:
            assert await reason_of(made, draw()) == "drawn"
        async with running(engines("--mute"), ready=False) as made:
            waiting = asyncio.create_task(reason_of(made, draw()))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        assert await waiting == "unavailable"

    asyncio.run(scenario())


def test_jobs_wait_as_long_as_engines_are_known_to_load(monkeypatch):
    monkeypatch.setattr(engines_module, "_SLACK", 100.0)  # this machine may be much busier the second time

    async def scenario():
        async with running(engines("--seconds=1", patience_s=0.1)) as made:
            assert await reason_of(made, draw("die once")) == "drawn"
            assert made.states[0].restarts == 1

    asyncio.run(scenario())


def test_an_engine_that_cannot_run_is_one_line():
    async def scenario():
        async with running(engines("--refuse", replicas=2), ready=False) as made:
            with pytest.raises(LensError, match=r"^there is no model folder anywhere$"):
                await made.ready()

    asyncio.run(scenario())


def test_a_cancelled_reader_cancels_its_job():
    async def scenario():
        async with running(engines()) as made:
            task = asyncio.create_task(picture_of(made, draw("hold")))
            await until(lambda: made.states[0].heartbeat and made.states[0].heartbeat.running == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert made.states[0].jobs == 0
            await until(lambda: made.states[0].heartbeat.running == 0)

    asyncio.run(scenario())


def test_a_slow_reader_holds_up_nobody():
    async def scenario():
        async with running(engines()) as made:
            slow = made.draw(draw(seed=1, steps=90, previews=90))
            await anext(slow)
            await asyncio.gather(*(picture_of(made, draw(seed=seed)) for seed in range(8)))
            await until(lambda: made.states[0].jobs == 0)  # drawn, though its reader sleeps
            events = [event async for event in slow]
            assert len(events) < 50
            assert events[-1].image_HW3[0, 0, 0] == 1

    asyncio.run(scenario())
