"""What may happen to a real engine, idle and under load: what becomes of it, of the guilty job, and of all others."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from subprocess import DEVNULL, PIPE

import psutil
import pytest

from lens_serve.engine import client as client_module
from lens_serve.engine.engines import EngineError, Engines, Picture
from serve.engine.process import PATIENCE_S, TESTS, children, draw_of, settings_of
from serve.engine.scripted_engine import soon, until

COMMAND = (sys.executable, "-m", "serve.faulty_engine")


@pytest.fixture(scope="module")
def run(tiny_folder):
    """Run a scenario with engines that all tests of this module share: faults must leave them as good as new."""
    before = children()
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv("PYTHONPATH", str(TESTS))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(client_module, "_HEALTHY_S", 0.0)
        # Warm, since an engine's first calls may take long; but with as much company as when nothing was measured.
        settings = settings_of(tiny_folder, watchdog_s=5.0, warm_up=True, knee_tokens=4096)
        engines = Engines(settings, command=COMMAND)
        runner.run(engines.start())
        yield lambda scenario: runner.run(scenario(engines))
        runner.run(engines.stop())
    assert children() <= before


def crowd(count, prompt="a slow circle", *, mark="crowd", **changes):
    """Pictures of several sizes and lengths, each exact."""
    sides = (16, 24, 32)
    return [
        draw_of(
            f"{mark}-{seed}",
            prompt=f"{prompt} {seed}",
            seed=seed,
            height=sides[seed % 3],
            width=sides[seed // 3 % 3],
            steps=3 + seed % 4,
            tier="exact",
            **changes,
        )
        for seed in range(count)
    ]


async def outcome_of(engines, wanted):
    """The bits of a picture, or why there is none."""
    try:
        async for event in engines.draw(wanted):
            if isinstance(event, Picture):
                return event.image_HW3.tobytes(), event.latent_sha256, event.pixel_sha256
    except EngineError as error:
        return error.reason


async def outcomes_of(engines, draws):
    return await asyncio.gather(*(outcome_of(engines, wanted) for wanted in draws))


async def alone(engines, draws):
    """The outcomes of draws that have the engine for themselves."""
    return [await outcome_of(engines, wanted) for wanted in draws]


async def is_idle(engines):
    """Wait until an engine is ready and has nothing left in it."""

    def idle():
        (state,) = engines.states
        return state.is_ready and state.heartbeat and not (state.heartbeat.running or state.heartbeat.waiting)

    await until(idle, PATIENCE_S)
    assert engines.states[0].jobs == 0
    assert engines.backlog_s() == 0.0


@pytest.mark.parametrize(("fault", "load"), [(signal.SIGKILL, 0), (signal.SIGKILL, 9), (signal.SIGSTOP, 9)])
def test_an_engine_that_dies_or_stops(run, fault, load):
    async def scenario(engines):
        await is_idle(engines)
        restarts = engines.states[0].restarts
        expected = await alone(engines, crowd(load, mark="alone"))
        assert all(isinstance(bits, tuple) for bits in expected)
        under_way = [asyncio.create_task(outcome_of(engines, wanted)) for wanted in crowd(load)]
        await until(lambda: not load or engines.states[0].heartbeat.running > 0)
        os.kill(killed := engines.states[0].pid, fault)
        await until(lambda: engines.states[0].pid != killed)
        assert await asyncio.gather(*under_way) == expected
        await is_idle(engines)
        assert engines.states[0].restarts == restarts + 1

    run(scenario)


@pytest.mark.parametrize("load", [0, 9])
def test_the_loss_of_an_engine_is_noticed_within_two_seconds(run, load):
    """Of the kill, by this process, in which `/health/ready` asks for just this."""

    async def scenario(engines):
        async def measure():
            await is_idle(engines)
            under_way = [asyncio.create_task(outcome_of(engines, wanted)) for wanted in crowd(load, "a circle")]
            await until(lambda: not load or engines.states[0].jobs == load)
            killed_at = time.monotonic()
            os.kill(engines.states[0].pid, signal.SIGKILL)
            await until(lambda: not engines.is_ready)
            taken_s = time.monotonic() - killed_at
            assert all(isinstance(bits, tuple) for bits in await asyncio.gather(*under_way))
            return taken_s

        await soon(measure, 2.0)

    run(scenario)


def test_a_prompt_that_hangs_every_engine(run):
    async def scenario(engines):
        expected = await alone(engines, crowd(6, mark="alone"))
        outcomes = await outcomes_of(engines, [*crowd(6), draw_of("guilty", prompt="hang")])
        assert outcomes == [*expected, "lost"]
        await is_idle(engines)
        assert await outcome_of(engines, crowd(1, mark="after")[0]) == expected[0]

    run(scenario)


def test_only_the_guilty_fail(run):
    faults = {"poison": "internal", "too large": "memory", "NaN": "not-finite"}

    async def scenario(engines):
        await is_idle(engines)
        restarts = engines.states[0].restarts
        expected = await alone(engines, crowd(6, mark="alone"))
        shared = [draw_of(f"shared-{seed}", seed=seed, prompt="crowded", steps=6) for seed in range(3)]
        guilty = [draw_of(fault, prompt=fault, steps=6) for fault in faults]
        outcomes = await outcomes_of(engines, [*crowd(6), *guilty, *shared])
        assert outcomes[:6] == expected
        assert outcomes[6:9] == list(faults.values())
        assert all(isinstance(bits, tuple) for bits in outcomes[9:])
        await is_idle(engines)
        assert engines.states[0].restarts == restarts

    run(scenario)


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_cancelled_jobs_leave_nothing_behind(run, count):
    """Readers go at a random event, or after a random time: queued, between steps, while decoded, or too late."""
    chance = random.Random(count)

    async def impatient(engines, wanted, events):
        async with aclosing(engines.draw(wanted)) as drawing:
            async for _ in drawing:
                events -= 1
                if events < 0:
                    return

    async def cancelled(engines, wanted):
        task = asyncio.create_task(outcome_of(engines, wanted))
        await asyncio.wait([task], timeout=chance.expovariate(20))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def scenario(engines):
        await is_idle(engines)
        restarts = engines.states[0].restarts
        expected = await alone(engines, crowd(6, "a circle", mark="alone"))
        for begin in range(0, count, 20):
            leave = [
                impatient(engines, wanted, chance.randrange(5)) if chance.random() < 0.5 else cancelled(engines, wanted)
                for wanted in crowd(20, "a circle", mark=f"go-{begin}", previews=2)
            ]
            drawn, *_ = await asyncio.gather(outcomes_of(engines, crowd(6, "a circle")), *leave)
            assert drawn == expected
        await is_idle(engines)
        many = crowd(2 * client_module.SLOTS, "a circle", mark="after")  # no slot was lost
        assert all(isinstance(bits, tuple) for bits in await outcomes_of(engines, many))
        assert engines.states[0].restarts == restarts

    run(scenario)


PARENT = """
import asyncio, sys
from pathlib import Path
from lens_serve.engine.engines import Engines
from serve.engine.process import draw_of, settings_of
from serve.engine.test_faults import COMMAND

async def main():
    engines = Engines(settings_of(Path(sys.argv[1]), watchdog_s=1000.0), command=COMMAND)
    await engines.start()
    await engines.ready()
    async for event in engines.draw(draw_of("job", prompt="slow", steps=2)):
        pass
    print(engines.states[0].pid, flush=True)
    async for event in engines.draw(draw_of("job", prompt="hang")):
        pass

asyncio.run(main())
"""


def test_no_engine_outlives_its_parent(tiny_folder):
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PARENT, tiny_folder]
    with subprocess.Popen(command, env=environment, stdout=PIPE, stderr=DEVNULL, text=True) as parent:
        engine = psutil.Process(int(parent.stdout.readline()))
        assert engine.is_running()
        parent.kill()
    _, alive = psutil.wait_procs([engine], timeout=PATIENCE_S)
    assert not alive
