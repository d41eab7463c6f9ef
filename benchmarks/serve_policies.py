"""Who should take the next step, when requests wait?

Runs the scheduler of `lens serve` on a virtual clock: no model, no GPU, only its predictions, taken for the truth.
The device is an imagined H100, on which a tick takes 4 ms + FLOPs / (620 TF/s · tokens / (tokens + 350)). Requests
arrive at random (Poisson) and are 55 % Turbo 1024², 25 % Lens 1024², 15 % Turbo 512² and 5 % Lens 1440²; Turbo takes 4
steps, Lens 20 with guidance. The load is a share of what a server could do that draws one picture after the other.

    python benchmarks/serve_policies.py --out docs/reports/serve-policies.json
    python benchmarks/serve_policies.py --requests 1500

Figures in brackets are those of the study that the design rests on, which had simulated the same with code of its own.
Only the ranking is worth trusting: seconds move with the cost model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import random
import shlex
import statistics
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from lens_serve.config import EngineSettings
from lens_serve.engine.cost import Branch, CostModel
from lens_serve.engine.messages import Costs
from lens_serve.engine.scheduler import Entry, Scheduler

COSTS = Costs(
    per_image=2.718e9,
    per_text=2.718e9,
    per_square=2.951e5,
    tick_s=4e-3,
    flops_per_s=620e12,
    half_tokens=350,
    encode_s=0.0,
    encode_token_s=0.0,
    decode_s=0.0,
    decode_pixel_s=2.6e-8,
)
TEXT = 150
KNEE = 4300
COLUMNS = ("mean s", "Turbo p50", "Turbo p99", "Lens p50", "Lens p99", "within 4x %")


@dataclass(frozen=True)
class Kind:
    """A kind of request, and how many of all are of it."""

    name: str
    share: float
    side: int
    steps: int
    guided: bool

    @property
    def sequences(self) -> tuple[Branch, ...]:
        """Its branches; that of an empty negative has no text."""
        image = (self.side // 16) ** 2
        return (Branch(image, TEXT), Branch(image, 0))[: 1 + self.guided]


KINDS = (
    Kind("Turbo 1024", 0.55, 1024, 4, False),
    Kind("Lens 1024", 0.25, 1024, 20, True),
    Kind("Turbo 512", 0.15, 512, 4, False),
    Kind("Lens 1440", 0.05, 1440, 20, True),
)


def solo_s(kind: Kind, model: CostModel) -> float:
    """Seconds of a request that has the device for itself."""
    return model.solo_s(kind.sequences, kind.steps, kind.side**2)


def capacity(model: CostModel) -> float:
    """Requests of the mix per second that a device does one after the other."""
    return 1 / sum(kind.share * solo_s(kind, model) for kind in KINDS)


MODEL = CostModel(COSTS)
CAPACITY = capacity(MODEL)
DEVICES = {
    "20 ms instead of 4 for each tick": {"tick_s": 0.02},
    "no fixed part, full rate at any size": {"tick_s": 0.0, "half_tokens": 0.0},
    "half its rate at 3,000 tokens": {"half_tokens": 3000.0},
    "a tenth of the rate": {"flops_per_s": 62e12},
    "decoding takes four times as long": {"decode_pixel_s": 1.04e-7},
}


class PackEverything(Scheduler):
    """The oldest jobs share every tick, whatever they are, up to eight sequences."""

    def next_tick(self, now: float) -> list[Entry]:
        """The head of the queue."""
        order = sorted((job.entry for job in self._jobs.values()), key=lambda entry: entry.arrived)
        counts = itertools.accumulate(len(entry.sequences) for entry in order)
        return [entry for entry, count in zip(order, counts, strict=True) if count <= 8]


@dataclass(frozen=True)
class Arrival:
    """A request, when it comes and who sends it."""

    time: float
    kind: Kind
    key: str


@dataclass(frozen=True)
class Done:
    """A request that was answered after so many seconds, or refused; and how long it would have taken alone."""

    arrival: Arrival
    seconds: float | None
    solo_s: float

    @property
    def prompt(self) -> bool:
        """Whether it took no more than four times as long as it would have taken alone."""
        return self.seconds is not None and self.seconds <= 4 * self.solo_s


@dataclass(frozen=True)
class Policy:
    """A scheduler and its settings."""

    settings: dict[str, Any] = field(default_factory=dict)
    scheduler: type[Scheduler] = Scheduler


STUDY = {"starvation": 1e9, "ageing": 0.02}
SERIAL = Policy({"policy": "first-come"})
SAME_SHAPE = Policy({"policy": "same-shape"})
PACK = Policy(scheduler=PackEverything)
UP_TO_9000 = Policy(STUDY | {"stretch": [1.0, 9000 / KNEE]})
UP_TO_20000 = Policy(STUDY | {"stretch": [1.0, 9000 / KNEE, 20_000 / KNEE]})
OURS = Policy()

# load, name, policy, and of the study: mean, p50 and p99 of Turbo and of Lens, share within four times the solo time
ROWS: list[tuple[float, str, Policy, tuple[float, ...]]] = [
    (0.5, "serial", SERIAL, (1.28, 0.17, 5.8, 1.21, 7.0, 71.7)),
    (0.5, "same shape", SAME_SHAPE, (1.31, 0.20, 5.8, 1.37, 7.1, 71.9)),
    (0.5, "pack everything", PACK, (1.12, 0.21, 4.5, 1.69, 7.9, 79.3)),
    (0.5, "remaining time, knee <= 9,000", UP_TO_9000, (0.79, 0.16, 0.40, 1.37, 4.0, 99.5)),
    (0.5, "remaining time, as shipped", OURS, ()),
    (0.8, "serial", SERIAL, (3.14, 1.78, 12.4, 2.75, 13.1, 43.5)),
    (0.8, "same shape", SAME_SHAPE, (2.96, 1.59, 12.0, 2.80, 12.7, 45.3)),
    (0.8, "pack everything", PACK, (2.37, 0.70, 9.7, 3.41, 13.2, 52.6)),
    (0.8, "remaining time, knee <= 9,000", UP_TO_9000, (1.26, 0.20, 0.53, 1.96, 6.7, 96.4)),
    (0.8, "remaining time, as shipped", OURS, ()),
    (0.95, "serial", SERIAL, (10.6, 7.6, 44, 8.6, 45, 17.1)),
    (0.95, "same shape", SAME_SHAPE, ()),
    (0.95, "pack everything", PACK, (4.65, 1.9, 16.5, 5.7, 20, 31.1)),
    (0.95, "remaining time, knee <= 20,000", UP_TO_20000, (2.12, 0.32, 1.05, 2.8, 9.1, 82.4)),
    (0.95, "remaining time, as shipped", OURS, ()),
]


def main() -> None:
    """Print the tables, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--requests", type=int, default=12_000, help="of each run; the first twelfth is not counted")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and kinds")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    if options.requests < 1000:
        parser.error("--requests: with fewer than 1000, the rarest class may have none to take the mean of")
    report = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "command": shlex.join(["python", *sys.argv]),
        "requests": options.requests,
        "seed": options.seed,
        "serial requests per second": CAPACITY,
        "policies": policies(options.requests, options.seed),
        "variants": variants(options.requests, options.seed),
        "devices": devices(options.requests // 2, options.seed),
        "overload": overload(options.requests, options.seed),
        "keys at load 0.8": keys(options.requests, options.seed),
        "a flood": flood(options.requests, options.seed),
        "ms of CPU per tick with 10,000 jobs": price(10_000),
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def policies(requests: int, seed: int) -> list[dict[str, Any]]:
    """The table of policies, each row beside the study's."""
    print(f"{'':37}" + "".join(f"{name:>14}" for name in COLUMNS))
    rows = []
    for load, name, policy, study in ROWS:
        row = figures(simulate(policy, poisson(load, requests, seed)))
        _show(f"{load:<5}{name}", row, study)
        rows.append({"load": load, "policy": name, **row, "study": dict(zip(COLUMNS, study, strict=False))})
    return rows


def variants(requests: int, seed: int) -> dict[str, dict[str, float]]:
    """What ageing, the knee and the guard do."""
    chosen = {
        "knee <= 9,000": UP_TO_9000,
        "knee <= 9,000, ageing 0.15": Policy(UP_TO_9000.settings | {"ageing": 0.15}),
        "never fill beyond the knee": Policy({"stretch": [1.0]}),
        "as shipped, half the knee": Policy({"stretch": [0.5, 1.0, 2.25]}),
        "as shipped, twice the knee": Policy({"stretch": [2.0, 4.0, 9.0]}),
        "as shipped, no guard": Policy({"starvation": 1e9}),
        "as shipped, guard at 20": Policy({"starvation": 20}),
        "as shipped, guard at 10": Policy({"starvation": 10}),
        "as shipped": OURS,
    }
    studied = {"0.95 knee <= 9,000": 86.7, "0.95 knee <= 9,000, ageing 0.15": 48.6}
    print(f"\n{'variants':37}" + "".join(f"{name:>14}" for name in (*COLUMNS, "p99 s", "longest s")))
    rows = {}
    for load, (name, policy) in itertools.product((0.8, 0.95), chosen.items()):
        row = rows[f"{load} {name}"] = figures(simulate(policy, poisson(load, requests, seed)))
        theirs = (*(None,) * 5, studied.get(f"{load} {name}"))
        _show(f"{load:<5}{name}", row, theirs, f"{row['p99 s']:14.1f}{row['longest s']:14.1f}")
    return rows


def devices(requests: int, seed: int) -> dict[str, dict[str, float]]:
    """The ranking with other costs: which part is done within four times the solo time."""
    chosen = {"serial": SERIAL, "same shape": SAME_SHAPE, "pack everything": PACK, "as shipped": OURS}
    print(f"\n{'other devices, within 4x %':42}" + "".join(f"{name:>17}" for name in chosen))
    rows = {}
    for load, (name, changes) in itertools.product((0.8, 0.95), DEVICES.items()):
        model = CostModel(msgspec.structs.replace(COSTS, **changes))
        arrivals = poisson(load, requests, seed, rate=capacity(model))
        row = {policy: figures(simulate(chosen[policy], arrivals, model=model))["within 4x %"] for policy in chosen}
        rows[f"{load} {name}"] = row
        print(f"{load:<5}{name:37}" + "".join(f"{value:17.1f}" for value in row.values()), flush=True)
    return rows


def overload(requests: int, seed: int) -> dict[str, dict[str, float]]:
    """Five times what the server can do; who finds a longer backlog is refused."""
    print("\nLoad 5 (study, backlog up to 5 s: refused 78 %, 1.1 of the serial rate, Turbo p99 1.6 s, within 4x 14 %)")
    rows = {}
    for bound_s in (10, 5, 2):
        name = f"backlog up to {bound_s} s"
        row = rows[name] = figures(simulate(OURS, poisson(5, requests, seed), bound_s=bound_s))
        row["of the serial rate"] = 5 * (1 - row["refused %"] / 100)
        _show(name, row, (), f"  refused {row['refused %']:.1f} %, {row['of the serial rate']:.2f} of the serial rate")
    return rows


def keys(requests: int, seed: int) -> dict[str, dict[str, float]]:
    """What it costs that the same requests belong to several keys."""
    print("\nKeys with equal shares, load 0.8")
    rows = {}
    for count in (1, 2, 5, 20, 100):
        rows[str(count)] = figures(simulate(OURS, poisson(0.8, requests, seed, keys=count)))
        _show(f"{count} key" + "s" * (count > 1), rows[str(count)])
    return rows


def flood(requests: int, seed: int) -> dict[str, dict[str, float]]:
    """One key sends more small requests than the server can do; how are those served who want a third of it?"""
    print("\nA flood of Turbo 512 at load 1.2, while others ask for the mix at load 0.3: how the others fare")
    small = poisson(1.2, requests // 3, seed, rate=1 / solo_s(KINDS[2], MODEL))
    others = [one for one in poisson(0.3, requests, seed + 1) if one.time < small[-1].time]
    rows = {}
    for name, key in (("with the same key", ""), ("with keys of their own", "flood")):
        mixed = sorted([*(Arrival(one.time, KINDS[2], key) for one in small), *others], key=lambda one: one.time)
        wanted = set(map(id, others))
        rows[name] = figures([one for one in simulate(OURS, mixed) if id(one.arrival) in wanted])
        _show(name, rows[name])
    return rows


def price(count: int) -> float:
    """Milliseconds of CPU that the next tick takes to find among so many jobs of two keys; the least of 20."""
    lots = random.Random(1)
    scheduler = Scheduler(EngineSettings(), {"lens": MODEL}, {"lens": KNEE})
    for number in range(count):
        scheduler.add(_entry(str(number), Arrival(number / count, lots.choice(KINDS), str(number % 2))))
    times = []
    for _ in range(20):
        started = time.process_time()
        members = scheduler.next_tick(1.0)
        times.append(1e3 * (time.process_time() - started))
        scheduler.took(members, 0.05, 1.0)
    print(f"\n{min(times):.1f} ms of CPU for a tick among {count:,} jobs")
    return min(times)


def poisson(load: float, requests: int, seed: int, *, keys: int = 1, rate: float = CAPACITY) -> list[Arrival]:
    """Requests that arrive at random, `load` times `rate` per second, by turns of several keys."""
    lots, now, arrivals = random.Random(seed), 0.0, []
    for number in range(requests):
        now += lots.expovariate(load * rate)
        kind = lots.choices(KINDS, [kind.share for kind in KINDS])[0]
        arrivals.append(Arrival(now, kind, str(number % keys) if keys > 1 else ""))
    return arrivals


def simulate(
    policy: Policy, arrivals: list[Arrival], *, bound_s: float = math.inf, model: CostModel = MODEL
) -> list[Done]:
    """Work until all requests are answered, and tell how each fared, in order of arrival.

    Args:
        policy: whose turn it is.
        arrivals: in order.
        bound_s: of the predicted backlog; a request that finds more than that is refused.
        model: how long everything takes.
    """
    scheduler = policy.scheduler(EngineSettings.model_validate(policy.settings), {"lens": model}, {"lens": KNEE})
    ended: dict[int, float] = {}
    now, coming = 0.0, 0
    while coming < len(arrivals) or len(scheduler):
        if not len(scheduler):
            now = max(now, arrivals[coming].time)
        while coming < len(arrivals) and arrivals[coming].time <= now:
            if bound_s == math.inf or scheduler.backlog_s() <= bound_s:
                scheduler.add(_entry(str(coming), arrivals[coming]))
            coming += 1
        if not (members := scheduler.next_tick(now)):
            continue
        seconds = model.tick_s(sequence for entry in members for sequence in entry.sequences)
        now += seconds
        scheduler.took(members, seconds, now)
        for entry in members:
            entry.taken += 1
            if not entry.steps_left:
                now += model.decode_s(entry.pixels)
                scheduler.remove(entry.id)
                ended[int(entry.id)] = now
    alone = {kind: solo_s(kind, model) for kind in KINDS}
    return [
        Done(arrival, ended[number] - arrival.time if number in ended else None, alone[arrival.kind])
        for number, arrival in enumerate(arrivals)
    ]


def _entry(id: str, arrival: Arrival) -> Entry:
    kind = arrival.kind
    return Entry(
        id=id,
        model="lens",
        group="lens",
        sequences=kind.sequences,
        steps=kind.steps,
        pixels=kind.side**2,
        key=arrival.key,
        arrived=arrival.time,
    )


def figures(done: list[Done]) -> dict[str, float]:
    """What the table says of a run; its first twelfth, in which queues build up, is not counted."""
    counted = done[len(done) // 12 :]
    every = sorted(one.seconds for one in counted if one.seconds is not None)
    row = {"mean s": statistics.mean(every)}
    for kind in ("Turbo 1024", "Lens 1024"):
        own = sorted(one.seconds for one in counted if one.seconds is not None and one.arrival.kind.name == kind)
        row |= {f"{kind.split()[0]} p50": _quantile(own, 0.5), f"{kind.split()[0]} p99": _quantile(own, 0.99)}
    row["within 4x %"] = 100 * sum(one.prompt for one in counted) / len(counted)
    refused = 100 * (1 - len(every) / len(counted))
    return row | {"p99 s": _quantile(every, 0.99), "longest s": every[-1], "refused %": refused}


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))]


def _show(name: str, row: dict[str, float], study: tuple[float | None, ...] = (), more: str = "") -> None:
    cells = []
    for column, theirs in itertools.zip_longest(COLUMNS, study):
        cells.append(f"{row[column]:.2f}" + (f" ({theirs:g})" if theirs is not None else ""))
    print(f"{name:37}" + "".join(f"{cell:>14}" for cell in cells) + more, flush=True)


if __name__ == "__main__":
    main()
