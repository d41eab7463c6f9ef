"""How fast do captions come, what does the client cost, and how much of a rate limit does it use?

Makes JPEG files, and for each client in turn starts the fake server in a process of its own (1 s until an answer) and
captions the files: with a loop as people write it (`AsyncOpenAI`, 64 in flight, Pillow), with that loop and Pillow in
threads, with bespoke curator if a Python is named that has it, and with the engine. Then the engine works against a
server that allows so many requests, or tokens, a minute and saves up no more than two seconds' worth. All in one run on
the same cores, one after the other.

    python benchmarks/caption.py --images 2000 --out runs/benchmarks/caption.json

    python3 -m venv curator && curator/bin/pip install bespokelabs-curator
    python benchmarks/caption.py --images 2000 --curator curator/bin/python

Of every client: images per second; CPU milliseconds per image of preparation (from a file to what is sent) and of the
rest; peak memory; and what the server spent on it. `--images 100000` takes the same files again and again, and shows
whether memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lens_caption.captioners.openai.captioner import OpenAICaptioner
from lens_caption.captioners.openai.config import OpenAIConfig
from lens_caption.engine.journal import Journal
from lens_caption.engine.run import caption_all
from lens_caption.engine.settings import EngineSettings
from lens_caption.testing.openai_server import numbered_image
from lens_core.contracts import ImageItem
from lens_core.pipeline.context import StageContext
from lens_core.pipeline.progress import Progress
from lens_core.registry import load_registry
from lens_core.storage.artifacts import OutputFolder

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = "gpt-4.1"
LOOP_IN_FLIGHT = 64
MOST_FILES = 1000
LIMITS = {"rpm": 3000, "tpm": 2_400_000}
LIMITED_IMAGES = 1000
SERVER = """
import time
from lens_caption.testing.openai_server import FakeServer, Limits
with FakeServer(delay_s={delay}, look="header", limits=Limits({rpm}, {tpm}, window_s=2)) as server:
    print(server.url, time.process_time(), flush=True)
    time.sleep(86400)
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="of the files, in pixels")
    parser.add_argument("--delay", type=float, default=1.0, help="seconds until the server answers")
    parser.add_argument("--in-flight", type=int, default=256, help="requests of engine and curator in flight")
    parser.add_argument("--max-side", type=int, default=768)
    parser.add_argument("--curator", type=Path, help="a Python that has bespokelabs-curator")
    parser.add_argument("--only", choices=["sdk", "sdk-threads", "curator", "lens", "rpm", "tpm"])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--client", choices=["lens", "sdk", "sdk-threads"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--rpm", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tpm", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps((by_lens if options.client == "lens" else by_sdk)(options)))
        return
    result: dict[str, Any] = {
        "benchmark": "caption",
        "date": date.today().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "images": options.images,
        "side": options.side,
        "max_side": options.max_side,
        "delay_s": options.delay,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "photos", min(options.images, MOST_FILES), options.side)
        for client in ("sdk", "sdk-threads", "curator", "lens"):
            if options.only in {None, client} and (client != "curator" or options.curator):
                result[client] = measure(client, folder, options)
                print(client, json.dumps(result[client]), flush=True)
        for kind, limit in LIMITS.items():
            if options.only in {None, kind}:
                result[kind] = measure("lens", folder, options, **{kind: limit})
                print(kind, json.dumps(result[kind]), flush=True)
    for peer in ("sdk", "sdk-threads", "curator"):
        if peer in result and "lens" in result:
            result[f"ratio_to_{peer}"] = round(result["lens"]["images_per_s"] / result[peer]["images_per_s"], 2)
            print(f"lens captions {result[f'ratio_to_{peer}']} times as many images per second as {peer}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def machine() -> str:
    """Cores and processor."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores, {found[1] if found else platform.processor()}"


def write(folder: Path, count: int, side: int) -> None:
    """Different JPEG files with detail in them."""
    folder.mkdir()
    for number in range(count):
        noise = Image.effect_noise((side, side), 24).convert("RGB")
        image = Image.blend(Image.fromarray(numbered_image(number, side, side)), noise, 0.3)
        image.save(folder / f"{number:06d}.jpg", quality=90)


def measure(client: str, folder: Path, options: argparse.Namespace, **limit: int) -> dict[str, Any]:
    """One client in a process of its own, against a server of its own, which may have a limit."""
    code = SERVER.format(delay=options.delay, rpm=limit.get("rpm"), tpm=limit.get("tpm"))
    images = min(options.images, LIMITED_IMAGES) if limit else options.images
    settings = {"folder": folder, "images": images, "max-side": options.max_side, "in-flight": options.in_flight}
    load = os.getloadavg()[0]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url, started = server.stdout.readline().split()
        command: list[Any] = [sys.executable, __file__, "--client", client]
        if client == "curator":
            command = [options.curator, Path(__file__).with_name("caption_curator.py"), "--model", MODEL]
        for name, value in {**settings, **limit, "url": url}.items():
            command += [f"--{name}", str(value)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        with urllib.request.urlopen(url.removesuffix("/v1") + "/_ledger?entries=1") as response:
            ledger = json.load(response)
        spent = time_of(server.pid)
        server.kill()
    assert ledger["billed"] == images
    result = {"load_before": round(load, 1), **json.loads(done.stdout.splitlines()[-1])}
    if limit:
        return result | use_of(limit, ledger)
    return result | {"server_ms": round(1000 * (spent - float(started)) / images, 2)}


def use_of(limit: dict[str, int], ledger: dict[str, Any]) -> dict[str, Any]:
    """What share of a limit was used by the server's own count, from the second answer to the last.

    The first request goes alone, to learn the limits, so its second of latency is no part of the pace.
    """
    (kind, per_minute), (_, first, *rest) = *limit.items(), ledger["entries"]
    used = len(rest) if kind == "rpm" else sum(entry["input_tokens"] + entry["output_tokens"] for entry in rest)
    minutes = (rest[-1]["at"] - first["at"]) / 60
    return {
        "limit": per_minute,
        "share_used": round(used / minutes / per_minute, 4),
        "refused": ledger["requests"] - ledger["billed"],
    }


def by_lens(options: argparse.Namespace) -> dict[str, Any]:
    """The engine, as `lens run` uses it."""
    files = sorted((options.folder / "photos").iterdir())
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(options.images)]
    paths = dict(zip(keys, itertools.cycle(files), strict=False))
    config = OpenAIConfig(
        model=MODEL,
        base_url=options.url,
        concurrency=options.in_flight,
        max_side=options.max_side,
        max_output_tokens=300,
    )
    state = Path(tempfile.mkdtemp(dir=options.folder))
    context = StageContext(
        name="words",
        inputs=(),
        output=OutputFolder(str(state / "out"), state / "scratch"),
        state_dir=state,
        run_url=str(state),
        base=str(state),
        seed=0,
        registry=load_registry(),
        progress=Progress(live=False),
    )
    captioner, journal = OpenAICaptioner(config), Journal(state / "journal.sqlite")
    prepare = Timed(captioner.preparer("sync"))
    captioner.preparer = lambda lane: prepare  # type: ignore[assignment, method-assign]
    peaks: list[int] = []

    def fetch(key: str) -> ImageItem:
        if key == keys[len(keys) // 10]:
            peaks.append(peak_mib())
        return ImageItem(key=key, data=paths[key].read_bytes())

    started, before = time.perf_counter(), time.process_time()
    settings = EngineSettings(rpm=options.rpm, tpm=options.tpm)
    caption_all(keys, fetch, captioner, journal, context, settings=settings)
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    statuses = journal.statuses()
    assert len(statuses) == len(keys)
    assert set(statuses.values()) == {"ok"}
    return {**figures(len(keys), seconds, cpu, prepare.seconds), "peak_mib_at_a_tenth": peaks[0]}


def by_sdk(options: argparse.Namespace) -> dict[str, Any]:
    """What one writes on a first afternoon: the SDK, a semaphore, Pillow; or, on the second, Pillow in threads."""
    from openai import AsyncOpenAI  # noqa: PLC0415

    files = list(itertools.islice(itertools.cycle(sorted((options.folder / "photos").iterdir())), options.images))

    @Timed
    def prepared(file: Path) -> str:
        image = Image.open(file).convert("RGB")
        image.thumbnail((options.max_side, options.max_side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()

    async def run() -> int:
        client, room = AsyncOpenAI(api_key="none", base_url=options.url), asyncio.Semaphore(LOOP_IN_FLIGHT)

        async def one(file: Path) -> bool:
            async with room:
                in_threads = options.client == "sdk-threads"
                url = await asyncio.to_thread(prepared, file) if in_threads else prepared(file)
                content = [
                    {"type": "text", "text": "Describe this image."},
                    {"type": "image_url", "image_url": {"url": url}},
                ]
                answer = await client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
                    max_completion_tokens=300,
                )
                return bool(answer.choices[0].message.content)

        async with client:
            return sum(await asyncio.gather(*(one(file) for file in files)))

    started, before = time.perf_counter(), time.process_time()
    done = asyncio.run(run())
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    assert done == len(files)
    return figures(len(files), seconds, cpu, prepared.seconds)


class Timed:
    """A function that adds up the CPU seconds of its calls, in whatever threads they are."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._calls: list[float] = []

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives."""
        before = time.thread_time()
        try:
            return self._function(*arguments)
        finally:
            self._calls.append(time.thread_time() - before)

    @property
    def seconds(self) -> float:
        """All of them."""
        return sum(self._calls)


def figures(images: int, seconds: float, cpu: float, preparing: float) -> dict[str, Any]:
    """What is reported of a client."""
    return {
        "images_per_s": round(images / seconds, 1),
        "prepare_ms": round(1000 * preparing / images, 2),
        "client_ms": round(1000 * (cpu - preparing) / images, 2),
        "peak_mib": peak_mib(),
    }


def peak_mib() -> int:
    """The most memory that this process has held; `getrusage` would count in the process that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) // 1024


def time_of(process: int) -> float:
    """CPU seconds of another process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
