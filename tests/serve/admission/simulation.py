"""A server, its clients and a clock that jumps from event to event."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import dataclass, field

from lens_serve.admission.admission import Admission, Refused
from lens_serve.admission.keys import Key
from lens_serve.config import AdmissionSettings
from lens_serve.engine.messages import Draw

MIX = [(0.55, 0.16), (0.25, 1.21), (0.15, 0.05), (0.05, 2.90)]
"""How often what comes, and how many seconds it takes alone."""

MEAN_S = sum(share * seconds for share, seconds in MIX)


def key(name, **limits):
    return Key(id=name, name=name, scopes=frozenset({"images"}), **limits)


def draw(seconds, *, prompt="a red circle", arrived=0.0, deadline=None, seed=0, index=0):
    """A picture whose time is written in its width, in milliseconds."""
    return Draw(
        id=f"{prompt}-{index}", model="lens", prompt=prompt, height=16, width=round(1000 * seconds), seed=seed,
        index=index, steps=1, guidance=1.0, arrived=arrived, deadline=deadline,
    )  # fmt: skip


def predict(one):
    return one.width / 1000


@dataclass
class Client:
    """One request and what became of it."""

    key: Key
    seconds: float
    number: int
    whole_seconds: bool = False
    sends_ticket: bool = True
    comes_again: bool = True
    told: Refused | None = None
    outcome: str = ""
    came: float = 0.0
    waited: float = 0.0


@dataclass
class Simulation:
    """Shortest remaining time first; what was predicted to take a second takes 1/`speed` of one."""

    settings: AdmissionSettings = field(default_factory=AdmissionSettings)
    speed: float = 1.0
    now: float = 0.0
    done: list = field(default_factory=list)
    highest_s: float = 0.0
    events: list = field(default_factory=list)
    running: list = field(default_factory=list)
    numbers: itertools.count = field(default_factory=itertools.count)

    def __post_init__(self):
        self.admission = Admission(
            self.settings,
            predict=predict,
            backlog_s=lambda: sum(left for left, *_ in self.running),
            clock=lambda: self.now,
            wall=lambda: self.now,
        )

    def at(self, time, client):
        heapq.heappush(self.events, (time, next(self.numbers), client))

    def run(self):
        """Until nothing happens any more."""
        while self.events or self.running:
            time = self.events[0][0] if self.events else math.inf
            if self.running and self.now + self.running[0][0] / self.speed <= time:
                left, _, client, admitted = heapq.heappop(self.running)
                self.now += left / self.speed
                self.done.append((self.now, client.seconds))
                client.waited = self.now - client.came
                admitted.charge(client.seconds)
                admitted.release()
                continue
            if self.running:
                left, *rest = heapq.heappop(self.running)
                heapq.heappush(self.running, (left - (time - self.now) * self.speed, *rest))
            self.now = time
            self.ask(heapq.heappop(self.events)[2])

    def goodput(self, seconds):
        """The part of what could have been drawn until then that was."""
        return sum(cost for time, cost in self.done if time <= seconds) / seconds / self.speed

    def ask(self, client):
        again = client.told is not None
        ticket = client.told.ticket if again and client.sends_ticket else None
        try:
            admitted = self.admission.admit(
                client.key,
                [draw(client.seconds, prompt=f"number {client.number}", seed=again)],
                ticket=ticket,
                repeated=again,
            )
        except Refused as refused:
            client.outcome = refused.code
            if not again and refused.retry:
                client.told = refused
                wait = refused.retry_after_s
                wait = math.ceil(wait) if client.whole_seconds else math.ceil(1000 * wait) / 1000
                if client.comes_again:
                    self.at(self.now + wait + 0.02, client)
            return
        client.outcome, client.came = "admitted", self.now
        admitted.submitted()
        heapq.heappush(self.running, (client.seconds, next(self.numbers), client, admitted))
        self.highest_s = max(self.highest_s, self.admission.backlog_s)


def overload(simulation, *, load, seconds, keys, seed=1, comes_again=1.0):
    """Requests come at random, `load` times as many as can be drawn; gives all clients, when everything is over."""
    rng = random.Random(seed)
    clients = []
    now = 0.0
    while now < seconds:
        now += rng.expovariate(load / MEAN_S)
        (cost,) = rng.choices([cost for _, cost in MIX], [share for share, _ in MIX])
        client = Client(
            key=rng.choice(keys),
            seconds=cost,
            number=len(clients),
            whole_seconds=rng.random() < 0.5,
            sends_ticket=rng.random() < 0.5,
            comes_again=rng.random() < comes_again,
        )
        clients.append(client)
        simulation.at(now, client)
    simulation.run()
    return clients
