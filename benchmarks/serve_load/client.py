"""Clients: requests begin at their times, whatever the server does."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from serve_load.mix import KINDS, mean_s, poisson

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from serve_load.mix import Arrival, Kind
    from serve_load.running import Running

__all__ = ["Answer", "Client", "Pace", "at_once", "measure_solo", "open_loop", "warm_up"]

PATH = "/v1/images/generations"


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Args:
        kind: what was asked for.
        due: when it should have begun, in seconds of the loop's clock.
        sent: when it did; later if this process was busy.
        ended: when the answer was complete.
        status: of HTTP; 0: the connection broke.
        whole: it has its picture.
        headers: of the answer.
    """

    kind: Kind
    due: float
    sent: float
    ended: float
    status: int
    whole: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From when it was due: what a client waits for does not begin later because the machine is busy."""
        return self.ended - self.due


class Client:
    """Asks one server for pictures; use it as a context.

    Args:
        server: which.
    """

    def __init__(self, server: Running):
        self._server = server
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            self._server.url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=600)
        )
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """For what `draw` does not do."""
        assert self._session is not None
        return self._session

    async def draw(
        self, kind: Kind, number: int, *, due: float | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask for a picture and read the answer to its end."""
        clock = asyncio.get_running_loop().time
        sent = clock()
        due = sent if due is None else due
        try:
            async with self.session.post(PATH, json=kind.body(number), headers=headers) as response:
                body = await response.json()
                whole = response.status == 200 and len(body["data"][0]["b64_json"]) > 100
                return Answer(kind, due, sent, clock(), response.status, whole, response.headers)
        except aiohttp.ClientError:
            return Answer(kind, due, sent, clock(), 0)

    async def raw(self, body: bytes) -> int:
        """The status that answers a body."""
        async with self.session.post(PATH, data=body, headers={"content-type": "application/json"}) as response:
            await response.read()
            return response.status


async def open_loop(arrivals: Iterable[Arrival], send: Callable[[Arrival, float], Awaitable[Any]]) -> list[Any]:
    """Send each at its time, and return what came of them when all have ended.

    Args:
        arrivals: in order.
        send: told of an arrival, and when it was due by the loop's clock.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    tasks = []
    for arrival in arrivals:
        await asyncio.sleep(max(0.0, began + arrival.time - clock()))
        tasks.append(asyncio.ensure_future(send(arrival, began + arrival.time)))
    return await asyncio.gather(*tasks)


async def measure_solo(servers: Iterable[Running], repeats: int) -> dict[str, float]:
    """Seconds of a request of each kind that has the server for itself, as its client sees it: the median."""
    seen: dict[str, list[float]] = {kind.name: [] for kind in KINDS}
    for server in servers:
        async with Client(server) as client:
            for turn in range(repeats + 1):
                for number, kind in enumerate(KINDS):
                    answer = await client.draw(kind, 10**6 + 100 * turn + number)
                    if not answer.whole:
                        raise RuntimeError(f"{kind.name} was answered {answer.status}")
                    if turn:  # the first is there to warm up
                        seen[kind.name].append(answer.seconds)
    return {name: statistics.median(seconds) for name, seconds in seen.items()}


@dataclass(frozen=True)
class Pace:
    """What a server does when there is always something to do.

    Args:
        requests_s: requests of the mix per second.
        solo_s: seconds of work done in a second, each counted as what it takes alone.
    """

    requests_s: float
    solo_s: float


async def warm_up(server: Running) -> None:
    """Twenty requests at once, some of which may be refused: then everything is there that is made when needed."""
    async with Client(server) as client:
        await asyncio.gather(*(client.draw(one.kind, 10**7 + one.number) for one in poisson(20, 1.0, seed=8)))
    await server.idle()


async def at_once(server: Running, solo_s: dict[str, float], count: int) -> Pace:
    """All requests at once: how fast can it be?"""
    async with Client(server) as client:
        began = time.monotonic()
        arrivals = poisson(count, 1.0, seed=7)
        answers = await asyncio.gather(*(client.draw(one.kind, one.number) for one in arrivals))
        seconds = time.monotonic() - began
    if not all(answer.whole for answer in answers):
        raise RuntimeError(f"answers of {sorted({answer.status for answer in answers})} with open doors")
    requests_s = len(answers) / seconds
    return Pace(requests_s, requests_s * mean_s(solo_s))
