"""Far more comes than can be done. Those who are refused should hear so at once, and the device should not rest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from serve_load.client import Client, at_once, measure_solo, open_loop, warm_up
from serve_load.mix import poisson, quantile
from serve_load.running import OPEN_DOORS, serving
from serve_load.watching import Watch

if TYPE_CHECKING:
    from pathlib import Path

    from serve_load.client import Answer, Pace
    from serve_load.mix import Arrival

__all__ = ["overload"]

_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry")


@dataclass(frozen=True)
class Tried:
    """A request, and how it fared: refused and sent again, perhaps.

    Args:
        first: what came of it.
        again: what came of its repetition.
        how: whether it was repeated with its ticket, or as OpenAI's clients do.
    """

    first: Answer
    again: Answer | None = None
    how: Literal["with ticket", "without ticket"] | None = None


async def _capacity(folder: Path, model: Path, *, count: int) -> tuple[dict[str, float], Pace, Pace]:
    """Seconds of each kind alone; the pace in order of arrival, and by remaining time, when nobody is refused."""
    paces = []
    async with serving(folder, model, admission=OPEN_DOORS) as server:
        solo_s = await measure_solo([server], repeats=7 if count > 20 else 2)
        paces.append(await at_once(server, solo_s, count))
    async with serving(folder, model, admission=OPEN_DOORS, engine={"policy": "first-come"}) as server:
        paces.append(await at_once(server, solo_s, count))
    ours, serial = paces
    return solo_s, serial, ours


async def overload(
    folder: Path, model: Path, *, seconds: float, load: float, probes: float, patience_s: float
) -> dict[str, Any]:
    """Many times what can be done, at a server as it is shipped.

    Args:
        folder: for files of the servers.
        model: a model folder.
        seconds: of the load.
        load: times what is done in order of arrival.
        probes: share of clients that come again when told to; half of them send the ticket.
        patience_s: they do not, if they are told to come later than that.
    """
    solo_s, serial, ours = await _capacity(folder, model, count=60 if seconds > 60 else 20)
    arrivals = poisson(load * serial.requests_s, seconds, seed=2)
    every = round(1 / probes)
    async with serving(folder, model) as server, Client(server) as client:
        await warm_up(server)

        async def send(one: Arrival, due: float) -> Tried:
            if one.number % every:
                return Tried(await client.draw(one.kind, one.number, due=due))
            with_ticket = one.number // every % 2 == 0
            return await _probe(client, one, due, with_ticket=with_ticket, patience_s=patience_s)

        began = asyncio.get_running_loop().time()
        async with Watch(server, every_s=min(2.0, seconds / 10)) as watch:
            tried: list[Tried] = await open_loop(arrivals, send)
        at_rest = await server.idle()
    counted = (began + 0.1 * seconds, began + seconds)
    return {
        "solo seconds": solo_s,
        "serial": vars(serial),
        "by remaining time, nobody refused": vars(ours),
        "requests": len(tried),
        **_outcomes(tried),
        "refusals": _refusals(tried),
        "work done per second": (goodput := _goodput(tried, solo_s, counted)),
        "goodput, of serial": goodput / serial.solo_s,
        "goodput, of what it can": goodput / ours.solo_s,
        "accepted, times solo, p50": quantile(_slowness(tried, solo_s), 0.5),
        "accepted, times solo, p99": quantile(_slowness(tried, solo_s), 0.99),
        "probes": {how: _probes(tried, how) for how in ("with ticket", "without ticket")},
        "usage": watch.report(),
        "idle afterwards": at_rest,
    }


async def _probe(client: Client, one: Arrival, due: float, *, with_ticket: bool, patience_s: float) -> Tried:
    """Ask, and if told to come again, do so once, at that time."""
    how: Literal["with ticket", "without ticket"] = "with ticket" if with_ticket else "without ticket"
    headers = {} if with_ticket else {"x-stainless-retry-count": "0"}
    first = await client.draw(one.kind, one.number, due=due, headers=headers)
    if first.status != 429 or first.headers.get("x-should-retry") != "true":
        return Tried(first, how=how)
    wait_s = int(first.headers["retry-after-ms"]) / 1000
    if wait_s > patience_s:
        return Tried(first, how=how)
    await asyncio.sleep(wait_s)
    headers = {"x-lens-ticket": first.headers["x-lens-ticket"]} if with_ticket else {"x-stainless-retry-count": "1"}
    return Tried(first, await client.draw(one.kind, one.number, headers=headers), how)


def _outcomes(tried: list[Tried]) -> dict[str, Any]:
    answers = [one.first for one in tried]
    statuses = sorted({answer.status for answer in answers})
    return {
        "statuses": {str(status): sum(answer.status == status for answer in answers) for status in statuses},
        "answered without a picture": sum(answer.status == 200 and not answer.whole for answer in answers),
        "began late, p99 s": quantile([answer.sent - answer.due for answer in answers], 0.99),
    }


def _refusals(tried: list[Tried]) -> dict[str, Any]:
    refused = [one.first for one in tried if one.first.status == 429]
    took_s = [answer.ended - answer.sent for answer in refused]
    return {
        "without the headers": sum(not all(name in answer.headers for name in _HEADERS) for answer in refused),
        "promised a place": sum(answer.headers.get("x-should-retry") == "true" for answer in refused),
        "took s, p50": quantile(took_s, 0.5),
        "took s, p99": quantile(took_s, 0.99),
        "took s, longest": quantile(took_s, 1.0),
    }


def _goodput(tried: list[Tried], solo_s: dict[str, float], window: tuple[float, float]) -> float:
    """Seconds of work done per second, each picture counted as what it takes alone."""
    answers = [answer for one in tried for answer in (one.first, one.again) if answer is not None and answer.whole]
    done = [answer for answer in answers if window[0] <= answer.ended <= window[1]]
    return sum(solo_s[answer.kind.name] for answer in done) / (window[1] - window[0])


def _slowness(tried: list[Tried], solo_s: dict[str, float]) -> list[float]:
    return [one.first.seconds / solo_s[one.first.kind.name] for one in tried if one.first.whole]


def _probes(tried: list[Tried], how: str) -> dict[str, int]:
    own = [one for one in tried if one.how == how]
    return {
        "sent": len(own),
        "let in at once": sum(one.first.whole for one in own),
        "told that it is no use, or will be late": sum(one.first.status == 429 and one.again is None for one in own),
        "told to come again": sum(one.again is not None for one in own),
        "let in then": sum(one.again is not None and one.again.whole for one in own),
    }
