"""What is usual, for long: most requests are good, some clients go, and some ask for what there is not."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from serve_load.client import Answer, Client, measure_solo, open_loop, warm_up
from serve_load.mix import BAD, mean_s, poisson, quantile
from serve_load.running import serving
from serve_load.watching import Watch

if TYPE_CHECKING:
    from pathlib import Path

    from serve_load.mix import Arrival
    from serve_load.running import Running

__all__ = ["soak"]

LOAD = 0.7
PROMPTS = 300
"""That are asked for again and again. An engine remembers prompts, up to a size that a soak would not reach: with new
ones every time, its memory would grow all the time as it is meant to, and nobody could see a leak."""


async def soak(folder: Path, model: Path, *, seconds: float, part: float = 0.01) -> dict[str, Any]:
    """A server as it is shipped, at seven tenths of what it could do one after the other.

    Args:
        folder: for files of the servers.
        model: a model folder.
        seconds: of the load.
        part: of the clients go; and as many again ask wrongly.
    """
    rng = random.Random(3)
    async with serving(folder, model) as server:
        solo_s = await measure_solo([server], repeats=7 if seconds > 60 else 2)
        arrivals = poisson(LOAD / mean_s(solo_s), seconds, seed=3)
        fates = {one.number: rng.choices(("good", "goes", "bad"), (1 - 2 * part, part, part))[0] for one in arrivals}
        fates |= {7: "goes", 13: "bad"}  # in the shortest of soaks, too
        await warm_up(server)
        before = await _at_rest(server)
        async with Client(server) as client:

            async def send(one: Arrival, due: float) -> Answer | tuple[int, int] | None:
                if fates[one.number] == "bad":
                    body, expected = BAD[one.number % len(BAD)]
                    return await client.raw(body), expected
                work = client.draw(one.kind, one.number % PROMPTS, due=due)
                if fates[one.number] == "good":
                    return await work
                try:
                    return await asyncio.wait_for(work, rng.uniform(0, 1.5) * solo_s[one.kind.name])
                except TimeoutError:
                    return None

            async with Watch(server, every_s=min(5.0, seconds / 20)) as watch:
                came = await open_loop(arrivals, send)
        after = await _at_rest(server)
        restarts = (await server.metrics())["lens_engine_restarts_total"]
    answers = [one for one in came if isinstance(one, Answer)]
    mistakes = [one for one in came if isinstance(one, tuple)]
    return {
        "seconds": seconds,
        "requests per second": len(arrivals) / seconds,
        "load": LOAD,
        "solo seconds": solo_s,
        "requests": len(came),
        "statuses": {str(s): sum(a.status == s for a in answers) for s in sorted({a.status for a in answers})},
        "without a picture": sum(answer.status == 200 and not answer.whole for answer in answers),
        "went": sum(one is None for one in came),
        "bad": len(mistakes),
        "bad, answered otherwise than expected": [pair for pair in mistakes if pair[0] != pair[1]],
        "engine restarts": restarts,
        "at rest": {"before": before, "after": after},
        "usage": watch.report(),
        "thirds": _thirds(answers, solo_s),
    }


async def _at_rest(server: Running) -> dict[str, Any]:
    """What there is when nobody asks for anything."""
    idle = await server.idle()
    return {"idle": idle, **{name: vars(usage) for name, usage in server.usage().items()}}


def _thirds(answers: list[Answer], solo_s: dict[str, float]) -> list[dict[str, float | None]]:
    """Of the requests, in order of arrival."""
    whole = [answer for answer in answers if answer.whole]
    part = len(whole) // 3
    rows = []
    for third in (whole[:part], whole[part : 2 * part], whole[2 * part :]):
        seconds = [answer.seconds for answer in third]
        slowness = [answer.seconds / solo_s[answer.kind.name] for answer in third]
        rows.append(
            {
                "p50 s": quantile(seconds, 0.5),
                "p99 s": quantile(seconds, 0.99),
                "times solo, p50": quantile(slowness, 0.5),
                "times solo, p99": quantile(slowness, 0.99),
            }
        )
    return rows
