"""One engine and its keeper: real processes, which say, do and suffer what engines may."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time

import numpy as np
import psutil
import pytest
import uvloop

from lens_serve.engine import client as client_module
from lens_serve.engine.client import EngineClient
from lens_serve.engine.events import EngineError, EngineLostError, Glimpse, Mailbox, Picture, Step
from lens_serve.engine.forecast import Forecast
from serve.engine.process import children
from serve.engine.scripted_engine import COMMAND, COSTS, INFO, LEARNT, draw, running, settings, until


@pytest.fixture(autouse=True)
def _no_process_is_left():
    before = children()
    yield
    assert children() <= before


@pytest.fixture
def quick(monkeypatch):
    """Pauses between engines that tests can wait for."""
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client_module, "_LAST_PAUSE_S", 0.04)


def one(*options, **engine):
    return EngineClient(0, settings(**engine), command=(*COMMAND, *options))


async def events_of(mailbox):
    events = []
    while not events or not isinstance(events[-1], Picture):
        events.append(await mailbox.take())
    return events


async def at_last(scenario):
    """Have something come true within three tries, each with an engine of its own.

    Where patience has to be short, this machine may be held up for longer, and an engine be lost for no fault of its
    own; but whatever is always taken for a hang would never come through.
    """
    tries = []
    while not any(tries) and len(tries) < 3:
        try:
            tries.append(await scenario())
        except EngineLostError:
            tries.append(False)
    assert any(tries)


async def draw_with(client, prompt="a cat", **changes):
    wanted = draw(prompt, **changes)
    with client.drawing(wanted, Forecast(wanted, INFO)) as mailbox:
        return await events_of(mailbox)


def test_a_picture_and_what_is_heard_of_it():
    async def scenario():
        async with running(one()) as client:
            assert client.said.models == [INFO]
            assert client.costs["lens"].decode_s(1) == 0.25
            events = await draw_with(client, seed=200, previews=2)
            assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4]
            glimpses = [event for event in events if isinstance(event, Glimpse)]
            assert [(glimpse.number, glimpse.image_HW3.tolist()) for glimpse in glimpses] == [
                (0, [[[1] * 3] * 2]),
                (1, [[[2] * 3] * 2]),
            ]
            picture = events[-1]
            np.testing.assert_array_equal(picture.image_HW3, np.full((16, 24, 3), 200))
            assert picture.image_HW3.flags.owndata
            assert (picture.latent_sha256, picture.pixel_sha256) == ("l", "p")
            assert client.jobs == {}

    asyncio.run(scenario())


def test_slots_are_given_back_though_nobody_takes_the_pictures():
    async def scenario():
        async with running(one()) as client:
            wanted = [draw(seed=seed, steps=1) for seed in range(4 * client_module.SLOTS)]
            drawings = [client.drawing(each, Forecast(each, INFO)) for each in wanted]
            mailboxes = [drawing.__enter__() for drawing in drawings]
            await until(lambda: not client.jobs)
            for seed, (drawing, mailbox) in enumerate(zip(drawings, mailboxes, strict=True)):
                assert (await events_of(mailbox))[-1].image_HW3[0, 0, 0] == seed
                drawing.__exit__(None, None, None)

    asyncio.run(scenario())


def test_who_leaves_cancels():
    async def scenario():
        async with running(one()) as client:
            wanted = draw("hold")
            with client.drawing(wanted, Forecast(wanted, INFO)) as mailbox:
                assert await mailbox.take() == Step(step=1, steps=4)
                await until(lambda: client.heartbeat.running == 1)
            assert client.jobs == {}
            await until(lambda: client.heartbeat.running == 0)

    asyncio.run(scenario())


def test_a_failure_is_its_jobs_alone():
    async def scenario():
        async with running(one()) as client:
            with pytest.raises(EngineError, match="no") as failure:
                await draw_with(client, "fail")
            assert failure.value.reason == "invalid"
            await draw_with(client)
            assert client.restarts == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["die", "garbage", "hang"])
def test_a_lost_engine_is_replaced_and_its_jobs_are_told(quick, how):
    async def scenario():
        async with running(one(watchdog_s=2.0 if how == "hang" else 60.0, watchdog_factor=2.0)) as client:
            first, waiting = client.pid, draw("hold")
            with client.drawing(waiting, Forecast(waiting, INFO)) as mailbox:
                await mailbox.take()
                with pytest.raises(EngineLostError):
                    await draw_with(client, how)
                client._settings = settings(watchdog_s=60.0)  # of those that follow
                with pytest.raises(EngineLostError):
                    await mailbox.take()
            assert not client.is_ready
            assert client.jobs == {}
            assert client.heartbeat is None
            assert client.said is not None
            await until(lambda: client.is_ready)
            assert client.restarts >= 1
            assert client.pid != first
            assert not psutil.pid_exists(first)
            await draw_with(client)

    asyncio.run(scenario())


def test_silence_that_was_announced_is_no_hang():
    async def scenario():
        async with running(one(watchdog_s=0.5, watchdog_factor=10.0)) as client:
            await draw_with(client, "long", steps=2)
            return client.restarts == 0

    asyncio.run(at_last(scenario))


def test_a_stopped_process_hangs(quick, capfd):
    async def scenario():
        async with running(one(watchdog_s=1.0)) as client:
            await until(lambda: client.heartbeat)
            os.kill(client.pid, signal.SIGSTOP)
            await until(lambda: client.restarts >= 1)
            await until(lambda: client.is_ready)

    asyncio.run(scenario())
    assert "engine 0: hangs (idle: nothing heard for" in capfd.readouterr().err


def test_that_nobody_listened_is_not_the_engines_silence(quick):
    async def scenario():
        async with running(one(watchdog_s=0.5, watchdog_factor=2.0)) as client:
            await until(lambda: client.heartbeat)
            for _ in range(2):
                time.sleep(1.5)  # the event loop is held up
                await asyncio.sleep(0.3)
            return client.restarts == 0

    asyncio.run(at_last(scenario))


def test_an_engine_that_never_becomes_ready_is_replaced(quick):
    async def scenario():
        client = one("--mute", loading_s=0.3)
        async with running(client, ready=False):
            await until(lambda: client.restarts >= 2)
            assert not client.is_ready

    asyncio.run(scenario())


@pytest.mark.parametrize("command", [(sys.executable, "-c", "pass"), ("/no/such/program",)])
def test_pauses_double_up_to_a_limit(quick, capfd, command):
    async def scenario():
        client = EngineClient(0, settings(), command=command)
        async with running(client, ready=False):
            await until(lambda: client.restarts >= 4)

    asyncio.run(scenario())
    said = [line for line in capfd.readouterr().err.splitlines() if "another is started in" in line]
    assert [line.split(" in ")[1] for line in said[:4]] == ["0.01 s", "0.02 s", "0.04 s", "0.04 s"]


def test_a_mistake_that_no_start_cures_is_said_once(quick, capfd):
    async def scenario():
        client = one("--refuse")
        async with running(client, ready=False):
            await until(lambda: client.restarts >= 3)
            client._command = list(COMMAND)  # it is mended,
            await until(lambda: client.is_ready)
            client._command = [*COMMAND, "--refuse"]  # and made again
            os.kill(client.pid, signal.SIGKILL)
            restarts = client.restarts
            await until(lambda: client.restarts >= restarts + 3)

    asyncio.run(scenario())
    lines = [line.removeprefix("engine 0: ") for line in capfd.readouterr().err.splitlines()]
    assert lines.count("there is no model folder anywhere") == 2
    ends = [line.split("; ")[2:] for line in lines if "another is started" in line]
    assert ends == [["as long as it ends like this, nothing more is said"], [], *ends[:1]]


def test_health_resets_the_pause(quick, monkeypatch, capfd):
    monkeypatch.setattr(client_module, "_HEALTHY_S", 0.0)

    async def scenario():
        async with running(one()) as client:
            for restarts in (1, 2, 3):
                await until(lambda: client.is_ready)
                os.kill(client.pid, signal.SIGKILL)
                await until(lambda restarts=restarts: client.restarts == restarts)

    asyncio.run(scenario())
    assert capfd.readouterr().err.count("ended; another is started in 0.01 s") == 3


def test_what_an_engine_learnt_is_told_to_its_successor(quick):
    async def scenario():
        async with running(one()) as client:
            assert client.said.costs == {"lens": COSTS}
            await draw_with(client, "learn", steps=1)
            first = client.said
            os.kill(client.pid, signal.SIGKILL)
            await until(lambda: client.is_ready and client.said is not first)
            assert client.said.costs == {"lens": LEARNT}

    asyncio.run(scenario())


def test_what_an_engine_writes_is_passed_on_line_by_line(quick, capfd):
    async def scenario():
        async with running(one()) as client:
            await draw_with(client, "shout", steps=1)
            with pytest.raises(EngineLostError):
                await draw_with(client, "die")
            await until(lambda: client.restarts == 1)

    asyncio.run(scenario())
    lines = capfd.readouterr().err.splitlines()
    assert lines[:2] == ["engine 0: one line", "engine 0: and half a"]


def test_an_engine_is_kept_though_nobody_reads_what_is_said_of_it(quick, monkeypatch):
    """As after `lens serve 2>&1 | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    closed = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", closed)

    async def scenario():
        async with running(one()) as client:
            os.kill(client.pid, signal.SIGKILL)
            await until(lambda: client.restarts >= 1 and client.is_ready)

    asyncio.run(scenario())
    with contextlib.suppress(BrokenPipeError):
        closed.close()


@pytest.mark.parametrize(("new_loop", "count"), [(asyncio.new_event_loop, 3), (uvloop.new_event_loop, 20)])
def test_restarts_leave_nothing_behind(quick, monkeypatch, new_loop, count):
    monkeypatch.setattr(client_module, "_HEALTHY_S", 0.0)

    async def scenario():
        await asyncio.create_subprocess_exec("true")  # what a loop opens for its first process stays open
        others = children()
        async with running(one()) as client:
            await until(lambda: client.heartbeat)
            before = open_files()
            for restarts in range(1, count + 1):
                os.kill(client.pid, signal.SIGKILL)
                await until(lambda restarts=restarts: client.restarts == restarts and client.is_ready)
            assert len(children() - others) == 1
            await until(lambda: open_files() <= before)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scenario())


def open_files():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a Path would say no more)


@pytest.mark.parametrize("options", [("--child",), ("--seconds=3600",)])
def test_stopping_ends_the_process_and_what_it_started(options):
    others = children()

    async def scenario():
        client = one(*options)
        async with running(client, ready=False):
            await until(lambda: client.pid)
            if "--child" in options:
                await until(lambda: client.is_ready)
                assert len(children() - others) == 2
            assert os.getpgid(client.pid) != os.getpgid(0)  # so that Ctrl-C is not for it
        assert client.pid is None

    asyncio.run(scenario())
    assert children() <= others


def test_a_process_that_has_ended_may_not_be_ours_any_more(quick, monkeypatch):
    """MacOS says so of one that was not waited for yet."""
    real, asked = os.killpg, []

    def killpg(*args):
        asked.append(args)
        if len(asked) == 1:
            raise PermissionError(1, "Operation not permitted")
        real(*args)

    async def scenario():
        async with running(one()) as client:
            monkeypatch.setattr(os, "killpg", killpg)
            os.kill(client.pid, signal.SIGKILL)
            await until(lambda: asked)
            await until(lambda: client.is_ready)
            assert client.exit_code == -signal.SIGKILL

    asyncio.run(scenario())


def test_without_a_socket_nothing_stays_open(quick, monkeypatch):
    def none_left():
        raise OSError(24, "Too many open files")

    async def scenario():
        monkeypatch.setattr(client_module.socket, "socketpair", none_left)
        client = one()
        before = open_files()
        async with running(client, ready=False):
            await until(lambda: client.restarts >= 3)
        assert open_files() <= before  # those of other servers of this process may go meanwhile

    asyncio.run(scenario())


def test_stopping_while_an_engine_is_buried():
    async def scenario():
        stops = []
        client = one()
        client._changed = lambda: client.is_ready or stops or stops.append(asyncio.create_task(client.stop()))
        async with running(client):
            os.kill(client.pid, signal.SIGKILL)
            await until(lambda: stops)
            await stops[0]
            assert client.exit_code == -signal.SIGKILL  # it was waited for

    asyncio.run(scenario())


def test_a_mailbox_is_bounded_and_keeps_what_matters():
    async def scenario():
        mailbox = Mailbox()
        image = np.zeros((1, 1, 3), np.uint8)
        for step in range(1, 1001):
            mailbox.put(Step(step=step, steps=1000))
            mailbox.put(Glimpse(number=step, image_HW3=image))
        mailbox.put(Picture(image_HW3=image, latent_sha256="", pixel_sha256="", seconds={}, features={}))
        events = await events_of(mailbox)
        assert len(events) < 50
        steps = [event.step for event in events if isinstance(event, Step)]
        glimpses = [event.number for event in events if isinstance(event, Glimpse)]
        assert steps == list(range(1001 - len(steps), 1001))
        assert glimpses == list(range(1001 - len(glimpses), 1001))
        assert len(glimpses) >= 3

    asyncio.run(scenario())


def test_a_mailbox_waits():
    async def scenario():
        mailbox = Mailbox()
        taker = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)
        assert not taker.done()
        mailbox.put(Step(step=1, steps=2))
        assert await taker == Step(step=1, steps=2)

    asyncio.run(scenario())
