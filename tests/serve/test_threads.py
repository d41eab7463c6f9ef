"""Threads for other people's code: what they say, that nobody waits for them for ever, and how many there are."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading

import pytest

from lens_serve.threads import Threads, in_a_thread


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def held():
    """What hangs until the end of a test; then its threads are waited for."""
    event, before = threading.Event(), set(threading.enumerate())
    yield event
    event.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)


@pytest.mark.anyio
async def test_what_is_returned_raised_and_seen():
    place = contextvars.ContextVar("place")
    place.set("here")
    assert await in_a_thread(lambda: (place.get(), threading.current_thread().name), name="other") == ("here", "other")
    with pytest.raises(ZeroDivisionError):
        await in_a_thread(lambda: 1 / 0, name="other")
    threads = Threads("other", most=1, timeout_s=60)
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 / 0)
    assert await threads.run(lambda: 7) == 7


@pytest.mark.anyio
async def test_what_hangs_keeps_its_place_and_holds_up_nobody(held):
    threads = Threads("other", most=2, timeout_s=0.05)
    running = []

    def hang():
        running.append(threading.get_ident())
        held.wait(60)

    for _ in range(5):
        with pytest.raises(TimeoutError):
            await threads.run(hang)
    async with asyncio.timeout(60):
        while len(running) < 2:  # those that were let in may still have to begin
            await asyncio.sleep(0.01)
    assert len(running) == 2
    held.set()
    async with asyncio.timeout(60):
        while True:
            try:
                assert await threads.run(lambda: 7) == 7
                break
            except TimeoutError:
                continue


@pytest.mark.anyio
async def test_who_goes_leaves_its_place_when_the_call_ends(held):
    threads = Threads("other", most=1, timeout_s=60)
    task = asyncio.create_task(threads.run(lambda: held.wait(60)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    following = asyncio.create_task(threads.run(lambda: 7))
    await asyncio.sleep(0.01)
    assert not following.done()
    held.set()
    assert await following == 7


def test_the_process_ends_whatever_hangs():
    code = (
        "import asyncio, time\n"
        "from lens_serve.threads import Threads\n"
        "async def main():\n"
        "    await Threads('x', most=1, timeout_s=0.05).run(lambda: time.sleep(3600))\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("TimeoutError\n")
