"""How does a server fare under load? A real one, `lens serve`, with an engine process of its own and random weights.

    python benchmarks/serve.py policies --minutes 11 --out docs/reports/serve-load.json
    python benchmarks/serve.py overload --seconds 120
    python benchmarks/serve.py soak --seconds 1800
    python benchmarks/serve.py cancels --count 1000
    python benchmarks/serve.py readers --count 500
    python benchmarks/serve.py losses --count 3

The model is the preset "nano" (4.3 M parameters) and computes on one core; clients, which send at their times whatever
the server does, share the other cores with the process that answers. So figures are of this machine, and what compares
with other figures of the same run is what is worth something. JSON goes to `--out`, under the name of the command; what
other commands have written there stays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_load.leaving import cancels, readers
from serve_load.loss import losses
from serve_load.overload import overload
from serve_load.policies import LOADS, compare
from serve_load.running import nano_model
from serve_load.soak import soak

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the loads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, help="a JSON file")
    common.add_argument("--model", type=Path, help="a model folder with sides of 32 to 96; by default, random weights")
    commands = parser.add_subparsers(required=True, dest="command")
    command = commands.add_parser("policies", parents=[common], help="the engine's policies, at three loads")
    command.add_argument("--minutes", type=float, default=11.0, help="of all of it")
    command.add_argument("--loads", type=float, nargs="+", default=LOADS, help="shares of the serial capacity")
    command.add_argument("--seed", type=int, default=1, help="of arrivals and kinds")
    command = commands.add_parser("overload", parents=[common], help="far more than can be done")
    command.add_argument("--seconds", type=float, default=120.0)
    command.add_argument("--load", type=float, default=5.0, help="times the serial capacity")
    command.add_argument("--probes", type=float, default=0.01, help="share of clients that come again when told to")
    command.add_argument("--patience", type=float, default=120.0, help="seconds that these clients are ready to wait")
    command = commands.add_parser("soak", parents=[common], help="what is usual, for long")
    command.add_argument("--seconds", type=float, default=1800.0)
    command = commands.add_parser("cancels", parents=[common], help="clients that go")
    command.add_argument("--count", type=int, default=1000)
    command = commands.add_parser("readers", parents=[common], help="streams that nobody reads")
    command.add_argument("--count", type=int, default=500)
    command.add_argument("--seconds", type=float, default=20.0, help="of each half")
    command = commands.add_parser("losses", parents=[common], help="engines that are killed")
    command.add_argument("--count", type=int, default=3, help="times")
    options = parser.parse_args(arguments)
    about = {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load average before": os.getloadavg(),
    }
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or nano_model(Path(folder, "model"))
        found = asyncio.run(_run(options, Path(folder), model))
    report = {options.command: {**about, "load average after": os.getloadavg(), **found}}
    print(json.dumps(report, indent=2))
    if options.out:
        _add(options.out, report)


async def _run(options: argparse.Namespace, folder: Path, model: Path) -> dict[str, Any]:
    match options.command:
        case "policies":
            return await compare(folder, model, minutes=options.minutes, loads=options.loads, seed=options.seed)
        case "overload":
            return await overload(
                folder,
                model,
                seconds=options.seconds,
                load=options.load,
                probes=options.probes,
                patience_s=options.patience,
            )
        case "soak":
            return await soak(folder, model, seconds=options.seconds)
        case "cancels":
            return await cancels(folder, model, count=options.count)
        case "losses":
            return await losses(folder, model, count=options.count)
        case _:
            return await readers(folder, model, count=options.count, seconds=options.seconds)


def _add(file: Path, report: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(known | report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
