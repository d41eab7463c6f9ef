"""The only engine is killed: how soon is that noticed, how soon is there another, when have all their pictures?"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from serve_load.client import Client, warm_up
from serve_load.mix import poisson
from serve_load.running import OPEN_DOORS, serving

if TYPE_CHECKING:
    from pathlib import Path

    from serve_load.running import Running

__all__ = ["losses"]

_LOOK_S = 0.01


async def losses(folder: Path, model: Path, *, count: int) -> dict[str, Any]:
    """SIGKILL of an engine, idle and with 20 requests under way; each time of another server.

    One that is killed again within a minute is started after a longer pause, which is not what is measured here.

    Args:
        folder: for files of the servers.
        model: a model folder.
        count: how often.
    """
    idle, busy = [], []
    for turn in range(count):
        for requests, found in ((0, idle), (20, busy)):
            async with serving(folder, model, admission=OPEN_DOORS) as server:
                await warm_up(server)
                found.append(await _lose(server, requests, turn))
    return {"idle": idle, "with 20 requests under way": busy}


async def _lose(server: Running, requests: int, turn: int) -> dict[str, Any]:
    """Seconds from the kill."""
    async with Client(server) as client:
        arrivals = poisson(requests, 1.0, seed=turn)[:requests]
        drawing = [asyncio.create_task(client.draw(one.kind, 1000 * turn + one.number)) for one in arrivals]
        while requests and not (await server.metrics()).get("lens_running_images"):
            await asyncio.sleep(_LOOK_S)
        owed = sum(not task.done() for task in drawing)
        server.engine.kill()
        began = time.monotonic()
        await _until_ready_is(client, said=False)
        noticed_s = time.monotonic() - began
        await _until_ready_is(client, said=True)
        again_s = time.monotonic() - began
        answers = await asyncio.gather(*drawing)
        return {
            "until ready says no, s": noticed_s,
            "until ready says yes, s": again_s,
            "owed": owed,
            "until the last of these is answered, s": max((answer.ended for answer in answers), default=began) - began,
            "had their picture": sum(answer.whole for answer in answers),
        }


async def _until_ready_is(client: Client, *, said: bool) -> None:
    while True:
        async with client.session.get("/health/ready") as answer:
            if (answer.status == 200) == said:
                return
        await asyncio.sleep(_LOOK_S)
