"""Who takes the next step: the same requests, at the same times, under each policy."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from serve_load.client import Client, at_once, measure_solo, open_loop
from serve_load.mix import KINDS, poisson, quantile
from serve_load.running import OPEN_DOORS, serving

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from serve_load.client import Answer
    from serve_load.mix import Arrival
    from serve_load.running import Running

__all__ = ["POLICIES", "compare"]

POLICIES = ("first-come", "same-shape", "remaining-time")
LOADS = (0.5, 0.8, 0.95)


async def compare(
    folder: Path, model: Path, *, minutes: float, loads: Sequence[float] = LOADS, seed: int = 1
) -> dict[str, Any]:
    """All policies at all loads. Their servers take turns, so that what disturbs the machine disturbs all of them.

    Args:
        folder: for files of the servers.
        model: a model folder.
        minutes: that all of it may take, about.
        loads: shares of what is done in order of arrival when there is always something to do.
        seed: of the times.
    """
    async with AsyncExitStack() as stack:
        servers = {
            policy: await stack.enter_async_context(
                serving(folder, model, engine={"policy": policy}, admission=OPEN_DOORS)
            )
            for policy in POLICIES
        }
        solo_s = await measure_solo(servers.values(), repeats=7 if minutes > 2 else 2)
        burst = 100 if minutes > 2 else 20
        paces = {policy: await at_once(server, solo_s, burst) for policy, server in servers.items()}
        capacity = paces["first-come"].requests_s
        # The rest of the time, less what was measured above and what runs have left to do at their ends.
        spent_s = 10 + 3 * burst / capacity
        seconds = max(3.0, (60 * minutes - spent_s) / (len(loads) * len(POLICIES)) - 2 / capacity - 3)
        rows = []
        for load in loads:
            arrivals = poisson(load * capacity, seconds, seed)
            for policy, server in servers.items():
                row = {"load": load, "policy": policy, **await _run(server, arrivals, solo_s)}
                rows.append(row)
                _show(row)
        # If the machine was as fast as before, these are the same.
        later_s = await measure_solo(servers.values(), repeats=7 if minutes > 2 else 2)
        return {
            "solo seconds": solo_s,
            "solo seconds, afterwards": later_s,
            "requests at once": burst,
            "requests per second, all at once": {policy: pace.requests_s for policy, pace in paces.items()},
            "capacity": capacity,
            "seconds of a run": seconds,
            "runs": rows,
        }


async def _run(server: Running, arrivals: list[Arrival], solo_s: dict[str, float]) -> dict[str, Any]:
    before = (await server.metrics())["lens_ticks_total"]
    async with Client(server) as client:
        answers: list[Answer] = await open_loop(arrivals, lambda one, due: client.draw(one.kind, one.number, due=due))
    await asyncio.sleep(0.6)  # for a sign of life, which tells the ticks
    ticks = (await server.metrics())["lens_ticks_total"] - before
    counted = answers[len(answers) // 12 :]  # until then, queues build up
    whole = [answer for answer in counted if answer.whole]
    prompt = [answer for answer in whole if answer.seconds <= 4 * solo_s[answer.kind.name]]
    slowness = [answer.seconds / solo_s[answer.kind.name] for answer in whole]
    return {
        "requests": len(answers),
        "failed": sum(not answer.whole for answer in answers),
        "within 4x %": 100 * len(prompt) / len(counted),
        "mean s": sum(answer.seconds for answer in whole) / len(whole),
        "times solo, p50": quantile(slowness, 0.5),
        "times solo, p99": quantile(slowness, 0.99),
        "requests per second": len(answers) / (max(a.ended for a in answers) - min(a.due for a in answers)),
        "sequences per tick": sum(answer.kind.sequence_steps for answer in answers if answer.whole) / ticks,
        "began late, p99 s": quantile([answer.sent - answer.due for answer in answers], 0.99),
        "kinds": {kind.name: _seconds([a.seconds for a in whole if a.kind is kind]) for kind in KINDS},
    }


def _seconds(values: list[float]) -> dict[str, float | None]:
    return {name: quantile(values, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}


def _show(row: dict[str, Any]) -> None:
    small, large = (row["kinds"][kind.name] for kind in (KINDS[0], KINDS[1]))
    print(
        f"{row['load']:<5}{row['policy']:16}{row['within 4x %']:6.1f} % within 4x  mean {row['mean s']:6.2f} s"
        f"  few steps {small['p50']:5.2f} / {small['p99']:5.2f}  many {large['p50']:5.2f} / {large['p99']:5.2f}"
        f"  {row['requests per second']:5.2f}/s  {row['sequences per tick']:4.2f} a tick  failed {row['failed']}",
        flush=True,
    )
