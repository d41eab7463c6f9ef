"""How fast do captions come, and what does the client cost, beside a plain loop over the official SDK?

Makes JPEG files, starts the fake server in a process of its own (1 s until an answer), and captions the files with the
engine and with a loop as people write it: `AsyncOpenAI`, 64 in flight, Pillow in a thread. Everything in one run, on
the same cores, one after the other.

    python benchmarks/caption.py --images 2000 --out runs/benchmarks/caption.json

Prints images per second and the ratio, CPU per image of preparation and of the client apart, and the highest resident
memory of the client (its pool counted in).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import date
from pathlib import Path
from typing import Any

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

MODEL = "gpt-4.1"
IN_FLIGHT = 64
SERVER = """
import time
from lens_caption.testing.openai_server import FakeServer
with FakeServer(delay_s={delay}, look="header") as server:
    print(server.url, flush=True)
    time.sleep(86400)
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="of the files, in pixels")
    parser.add_argument("--delay", type=float, default=1.0, help="seconds until the server answers")
    parser.add_argument("--in-flight", type=int, default=256, help="requests of the engine in flight")
    parser.add_argument("--max-side", type=int, default=768)
    parser.add_argument("--only", choices=["lens", "sdk"], default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    parser.add_argument("--client", choices=["lens", "sdk"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps({"lens": by_lens, "sdk": by_sdk}[options.client](options)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "photos", options.images, options.side)
        result: dict[str, Any] = {
            "benchmark": "caption",
            "date": date.today().isoformat(),
            "cores": os.cpu_count(),
            "images": options.images,
            "side": options.side,
            "delay_s": options.delay,
        }
        for client in ("sdk", "lens"):
            if options.only in {None, client}:
                result[client] = measure(client, folder, options)
                print(client, json.dumps(result[client]), flush=True)
    if "sdk" in result and "lens" in result:
        result["ratio"] = round(result["lens"]["images_per_s"] / result["sdk"]["images_per_s"], 2)
        print(f"lens captions {result['ratio']} times as many images per second as the SDK loop")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def write(folder: Path, count: int, side: int) -> None:
    """Different JPEG files with detail in them."""
    folder.mkdir()
    for number in range(count):
        noise = Image.effect_noise((side, side), 24).convert("RGB")
        image = Image.blend(Image.fromarray(numbered_image(number % 1000, side, side)), noise, 0.3)
        image.save(folder / f"{number:06d}.jpg", quality=90)


def measure(client: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One client in a process of its own, against a server of its own."""
    code = SERVER.format(delay=options.delay)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        command = [sys.executable, __file__, "--client", client, "--url", url, "--folder", str(folder)]
        command += ["--in-flight", str(options.in_flight), "--max-side", str(options.max_side)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        with urllib.request.urlopen(url.removesuffix("/v1") + "/_ledger") as response:
            billed = json.load(response)["billed"]
        server.kill()
    return {**json.loads(done.stdout), "billed": billed}


def by_lens(options: argparse.Namespace) -> dict[str, Any]:
    """The engine, with a pool of processes."""
    files = sorted((options.folder / "photos").iterdir())
    paths = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in files}
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
    workers = os.cpu_count() or 1
    started, before = time.perf_counter(), usage()
    caption_all(
        list(paths),
        lambda key: ImageItem(key=key, data=paths[key].read_bytes()),
        captioner,
        journal,
        context,
        settings=EngineSettings(workers=workers),
    )
    seconds, after = time.perf_counter() - started, usage()
    statuses = journal.statuses()
    assert len(statuses) == len(paths)
    assert set(statuses.values()) == {"ok"}
    return {
        "images_per_s": round(len(paths) / seconds, 1),
        "client_ms": round(1000 * (after["own"] - before["own"]) / len(paths), 2),
        "prepare_ms": round(1000 * (after["children"] - before["children"]) / len(paths), 2),
        "peak_mib": after["own_mib"] + workers * after["child_mib"],
    }


def by_sdk(options: argparse.Namespace) -> dict[str, Any]:
    """What one writes on a first afternoon: the SDK, a semaphore, Pillow."""
    from openai import AsyncOpenAI  # noqa: PLC0415

    files = sorted((options.folder / "photos").iterdir())
    words = "Describe this image."

    def prepared(file: Path) -> str:
        image = Image.open(file).convert("RGB")
        image.thumbnail((options.max_side, options.max_side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()

    async def run() -> int:
        client, room = AsyncOpenAI(api_key="none", base_url=options.url), asyncio.Semaphore(IN_FLIGHT)

        async def one(file: Path) -> bool:
            async with room:
                url = await asyncio.to_thread(prepared, file)
                content = [{"type": "text", "text": words}, {"type": "image_url", "image_url": {"url": url}}]
                answer = await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": content}], max_completion_tokens=300
                )
                return bool(answer.choices[0].message.content)

        async with client:
            return sum(await asyncio.gather(*(one(file) for file in files)))

    started, before = time.perf_counter(), usage()
    done = asyncio.run(run())
    seconds, after = time.perf_counter() - started, usage()
    assert done == len(files)
    return {
        "images_per_s": round(len(files) / seconds, 1),
        "client_and_prepare_ms": round(1000 * (after["own"] - before["own"]) / len(files), 2),
        "peak_mib": after["own_mib"],
    }


def usage() -> dict[str, float]:
    """CPU seconds of this process and of its ended children, and their highest resident memory in MiB."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "own": own.ru_utime + own.ru_stime,
        "children": children.ru_utime + children.ru_stime,
        "own_mib": own.ru_maxrss // 1024,
        "child_mib": children.ru_maxrss // 1024,
    }


if __name__ == "__main__":
    main()
