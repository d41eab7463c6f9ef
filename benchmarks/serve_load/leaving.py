"""Clients that are of no use: those that go before they have their pictures, and those that do not read."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from serve_load.client import PATH, Client, at_once, measure_solo, warm_up
from serve_load.mix import KINDS, LARGEST, SMALLEST, quantile
from serve_load.running import OPEN_DOORS, serving

if TYPE_CHECKING:
    from pathlib import Path

    import aiohttp

    from serve_load.mix import Kind
    from serve_load.running import Running

__all__ = ["cancels", "readers"]

_AT_ONCE = 8
_TIMED = 20


async def cancels(folder: Path, model: Path, *, count: int) -> dict[str, Any]:
    """Clients that go at any moment, from before the server has heard of them until after their answer.

    Args:
        folder: for files of the server.
        model: a model folder.
        count: how many.
    """
    rng = random.Random(4)
    async with serving(folder, model, admission=OPEN_DOORS, bounds={"max_streams": 2 * _AT_ONCE}) as server:
        solo_s = await measure_solo([server], repeats=2)
        await warm_up(server)
        before = server.usage()
        plans = [(rng.choice(KINDS), number, rng.random() < 0.5, rng.uniform(0, 1.5)) for number in range(count)]
        stages = await _cancel(server, plans, solo_s)
        idle = await server.idle()
        freed_s = [await _until_free(server, number) for number in range(min(_TIMED, count))]
        await at_once(server, solo_s, 20)  # four slots hold pictures: all of these went through them
        await server.idle()
        after = server.usage()  # before the connection to the metrics, which takes a moment to close
        told = await server.metrics()
        return {
            "clients": count,
            "had their answer": stages["answered"],
            "went": stages["went"],
            "other": stages["other"],
            "noticed": told["lens_cancels_total"],
            "idle afterwards": idle,
            "engine restarts": told["lens_engine_restarts_total"],
            "until the engine is free, s": {"p50": quantile(freed_s, 0.5), "longest": quantile(freed_s, 1.0)},
            "before": {name: vars(usage) for name, usage in before.items()},
            "after": {name: vars(usage) for name, usage in after.items()},
        }


async def _cancel(
    server: Running, plans: list[tuple[Kind, int, bool, float]], solo_s: dict[str, float]
) -> dict[str, int]:
    counts = {"answered": 0, "went": 0, "other": 0}
    turns = asyncio.Semaphore(_AT_ONCE)
    async with Client(server) as client:

        async def one(kind: Kind, number: int, stream: bool, patience: float) -> None:
            more = {"stream": True, "partial_images": 2} if stream else {"n": 1 + number % 2}
            async with turns:
                try:
                    # With others beside it, it takes longer than alone.
                    async with asyncio.timeout(patience * solo_s[kind.name] * _AT_ONCE / 2):
                        async with client.session.post(PATH, json=kind.body(number, **more)) as response:
                            await response.read()
                            counts["answered" if response.status == 200 else "other"] += 1
                except TimeoutError:
                    counts["went"] += 1

        await asyncio.gather(*(one(*plan) for plan in plans))
    return counts


async def _until_free(server: Running, number: int) -> float:
    """Seconds from when the only client goes, amid the steps of its picture, until the engine has nothing to do."""
    async with Client(server) as client:
        drawing = asyncio.create_task(client.draw(LARGEST, 5000 + number))
        while not (await server.metrics()).get("lens_running_images"):
            if drawing.done():  # it was too quick for us
                drawing = asyncio.create_task(client.draw(LARGEST, 6000 + number))
        drawing.cancel()
        began = time.monotonic()
    while await server.working():
        pass
    return time.monotonic() - began


async def readers(folder: Path, model: Path, *, count: int, seconds: float) -> dict[str, Any]:
    """Event streams of pictures that wait for their turn, which nobody reads, beside one client who wants his pictures.

    Args:
        folder: for files of the server.
        model: a model folder.
        count: of the streams.
        seconds: of the time with few streams, and of that with all of them.
    """
    # Ticks do not grow with the backlog, so that both halves take the same ticks.
    async with serving(
        folder, model, admission=OPEN_DOORS, bounds={"max_streams": count, "max_steps": 1000}, engine={"stretch": [1.0]}
    ) as server:
        few = min(4, count)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(Client(server))
            # Of a thousand steps each: no picture is done before the end.
            asked = [{**LARGEST.body(number), "stream": True} for number in range(count)]
            for body in asked:
                body["lens"] = {**body["lens"], "steps": 1000}
            streams = [await stack.enter_async_context(client.session.post(PATH, json=body)) for body in asked[:few]]
            with_few = await _beside(server, client, seconds)
            rest = await asyncio.gather(*(_open(client.session, body) for body in asked[few:]))
            for stream in rest:
                stack.push_async_exit(stream)
            streams += rest
            with_all = await _beside(server, client, seconds)
            told = await server.metrics()
            usage = {name: vars(usage) for name, usage in server.usage().items()}
            for stream in streams:
                stream.close()
        idle = await server.idle()
        after = {name: vars(usage) for name, usage in server.usage().items()}
        return {
            "streams": len(streams),
            "streams answered 200": sum(stream.status == 200 for stream in streams),
            "pictures the engine has": told["lens_engine_jobs"],
            f"with {few} streams": with_few,
            "with all": with_all,
            "usage with all": usage,
            "usage afterwards": after,
            "idle afterwards": idle,
        }


async def _open(session: aiohttp.ClientSession, body: dict[str, object]) -> aiohttp.ClientResponse:
    return await session.post(PATH, json=body)


async def _beside(server: Running, client: Client, seconds: float) -> dict[str, Any]:
    """How somebody fares who asks for one small picture after the other, and how many ticks there are."""
    await asyncio.sleep(1.0)
    before, began = await server.metrics(), time.monotonic()
    answers = []
    while time.monotonic() - began < seconds:
        answers.append(await client.draw(SMALLEST, 10_000 + len(answers)))
        await asyncio.sleep(0.05)
    took, after = time.monotonic() - began, await server.metrics()
    took_s = [answer.seconds for answer in answers]
    return {
        "pictures asked for": len(answers),
        "pictures had": sum(answer.whole for answer in answers),
        "seconds, p50": quantile(took_s, 0.5),
        "seconds, p99": quantile(took_s, 0.99),
        "ticks": after["lens_ticks_total"] - before["lens_ticks_total"],
        "ticks per second": (after["lens_ticks_total"] - before["lens_ticks_total"]) / took,
        "seconds of a tick, mean of a sample": (after["lens_tick_seconds_sum"] - before["lens_tick_seconds_sum"])
        / max(1.0, after["lens_tick_seconds_count"] - before["lens_tick_seconds_count"]),
    }
