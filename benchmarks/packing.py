"""What does planning save, and what does it cost?

Cuts packs for the 3.8b model from 27 sizes (512, 768 and 1024 pixels in nine ratios) with captions of 20 to 300 tokens,
a tenth of them left out, by the ragged plan and by the paper's buckets (24, 10 and 6 images, captions padded to 512).
Two ranks take packs k and k+1 for 1,000 steps.

    python benchmarks/packing.py --out docs/reports/packing.json
    python benchmarks/packing.py --large 100000000 --folder /tmp/packing   # about 8 GB of files, removed afterwards

Waste is the share of a step's FLOPs that is not spent on tokens of images and captions: padding is computed on, and the
rank with less to do waits. `--large` adds the price: a manifest of so many samples is written and ranked, and packs
here and there are asked for, in processes of their own whose anonymous memory is watched.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_core.diffusion.models.lens.config import load_preset
from lens_train.planning.buckets import BucketPlan
from lens_train.planning.costs import CostModel
from lens_train.planning.layout import CAPTION, CAPTIONS, FORMAT_VERSION, HEAD, RANKING, SAMPLE, SAMPLES, TEXTS
from lens_train.planning.manifest import Manifest
from lens_train.planning.manifest_writer import ManifestWriter
from lens_train.planning.ragged import RaggedPlan
from lens_train.planning.ranking import write_ranking
from lens_train.planning.samples import SampleSource
from lens_train.planning.sizes import size_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_train.planning.packs import Pack, Plan

STRIDE = 16
DROPOUT = 0.1
PADDED_TEXT = 512
SIZES = [size for base in (512, 768, 1024) for size in size_table(base, STRIDE)]
PAPER = {512: 24, 768: 10, 1024: 6}
MODEL = load_preset("3.8b") | {
    "in_channels": 128,
    "out_channels": 32,
    "enc_hidden_dim": 2880,
    "selected_layer_index": [5, 11, 17, 23],
}
COSTS = CostModel.of(MODEL)


def main() -> None:
    """Print the table, and the price if asked for; write both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--samples", type=int, default=200_000, help="samples of the table's manifest")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--large", type=int, default=0, help="samples of the manifest that planning is priced on")
    parser.add_argument("--seeks", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="for the files; a temporary folder if none is given")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report["packing"] = compare(mixed(Path(folder) / "mix", options.samples), options.steps)
        for name, row in report["packing"].items():
            print(f"{name:28}", "  ".join(f"{key} {value:,.2f}" for key, value in row.items()))
        if options.large:
            report["planning"] = price(Path(folder) / "large", options.large, options.seeks)
            for name, value in report["planning"].items():
                print(f"{name:28} {value:,.1f}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def mixed(folder: Path, count: int) -> SampleSource:
    """Samples of the 27 sizes, as many of each in the mean, with captions of 20 to 300 tokens."""
    lots = random.Random(5)
    writer = ManifestWriter(folder)
    for number in range(count):
        height, width = lots.choice(SIZES)
        writer.add(
            key=lots.randbytes(32).hex(),
            shard=0,
            offset=number,
            size=1,
            height=height,
            width=width,
            captions=[("", lots.randint(20, 300))],
        )
    return source_of(writer.close(["none"]))


def source_of(manifest: Manifest) -> SampleSource:
    """What the plans draw from."""
    return SampleSource(manifest=manifest, costs=COSTS, stride=STRIDE, seed=7, caption_dropout=DROPOUT)


def compare(source: SampleSource, steps: int) -> dict[str, dict[str, float]]:
    """The table: each plan's packs, the work they mean, and what of it is wasted."""
    buckets = BucketPlan(source, PAPER)
    by_tokens = RaggedPlan(source, tokens=25_600)
    by_samples = RaggedPlan(source, samples=10)
    return {
        "buckets, padded": row(buckets, steps, _padded),
        "ragged, 25,600 tokens": row(by_tokens, steps, _as_is),
        "ragged, 25,600 tokens, fixed": row(by_tokens, steps, _filled_up),
        "ragged, 10 samples": row(by_samples, steps, _as_is),
        "ragged, 10 samples, fixed": row(by_samples, steps, _filled_up),
    }


def row(plan: Plan, steps: int, work: Any) -> dict[str, float]:
    """Means over steps of two ranks, in percent where it is a share; `work` gives a pack's tokens and FLOPs as run."""
    spreads, wastes, padding, tokens, images = [], [], [], [], []
    for step in range(steps):
        packs = [plan.pack(2 * step), plan.pack(2 * step + 1)]
        run = [work(plan, pack) for pack in packs]
        flops = [one[1] for one in run]
        spreads.append(100 * (max(flops) - min(flops)) / statistics.mean(flops))
        wastes.append(100 * (1 - sum(pack.flops for pack in packs) / (2 * max(flops))))
        real = sum(pack.image_tokens + pack.text_tokens for pack in packs)
        padding.append(100 * (1 - real / sum(one[0] for one in run)))
        tokens.append(real / 2)
        images.append(sum(len(pack.samples) for pack in packs) / 2)
    return {
        "images per pack": statistics.mean(images),
        "tokens per pack": statistics.mean(tokens),
        "padded tokens %": statistics.mean(padding),
        "FLOPs spread %": statistics.mean(spreads),
        "FLOPs spread p95 %": float(np.percentile(spreads, 95)),
        "FLOPs wasted %": statistics.mean(wastes),
    }


def _padded(plan: Plan, pack: Pack) -> tuple[int, float]:
    lengths = [(sample.image_tokens, PADDED_TEXT) for sample in pack.samples]
    return sum(map(sum, lengths)), sum(COSTS(*length) for length in lengths)


def _as_is(plan: Plan, pack: Pack) -> tuple[int, float]:
    return pack.image_tokens + pack.text_tokens, pack.flops


def _filled_up(plan: Plan, pack: Pack) -> tuple[int, float]:
    """The rest of the buffers is one more segment, which attention looks at like any other."""
    assert plan.capacity is not None
    rest = plan.capacity[0] - pack.image_tokens, plan.capacity[1] - pack.text_tokens
    assert min(rest) >= 0
    return sum(plan.capacity), pack.flops + COSTS(*rest)


def price(folder: Path, count: int, seeks: int) -> dict[str, float]:
    """Write and rank a manifest of random samples, then plan here and there in it."""
    result = {"samples": float(count)} | apart([_build, _seek], folder, count, seeks)
    shutil.rmtree(folder)
    return result


def apart(tasks: Sequence[Any], *arguments: Any) -> dict[str, float]:
    """What tasks find, each in a process of its own, and the anonymous memory that it takes for it."""
    context = multiprocessing.get_context("spawn")
    result: dict[str, float] = {}
    for task in tasks:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_watched, args=(task, theirs, *arguments))
        process.start()
        theirs.close()
        result |= ours.recv()
        process.join()
    return result


def _watched(task: Any, pipe: Any, *arguments: Any) -> None:
    """Run a task, and send its result and the most anonymous memory that this process had meanwhile."""
    most, done = [_anonymous_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], _anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    before, name = most[0], task.__name__.strip("_")
    try:
        result = task(*arguments)
    finally:
        done.set()
        watcher.join()
    pipe.send(result | {f"{name}: anonymous MB": most[0], f"{name}: of it Python and imports": before})


def _anonymous_mb() -> float:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split("RssAnon:")[1].split()[0]) / 1e3


def _build(folder: Path, count: int, seeks: int) -> dict[str, float]:
    """The files of a manifest, written in pieces: `ManifestWriter.add` is the same, a sample at a time."""
    folder.mkdir()
    lots = np.random.default_rng(5)
    started = time.perf_counter()
    with (folder / SAMPLES).open("wb") as samples, (folder / CAPTIONS).open("wb") as captions:
        for first in range(0, count, 1 << 16):
            many = min(1 << 16, count - first)
            records = np.zeros(many, SAMPLE)
            records["key"] = lots.integers(0, 2**64, size=(many, 4), dtype=np.uint64)
            records["caption_start"] = records["offset"] = first + np.arange(many)
            records["captions"] = 1
            size = np.array(SIZES)[lots.integers(len(SIZES), size=many)]
            records["height"], records["width"] = size[:, 0], size[:, 1]
            texts = np.zeros(many, CAPTION)
            texts["tokens"] = lots.integers(20, 301, size=many)
            records.tofile(samples)
            texts.tofile(captions)
    (folder / TEXTS).touch()
    written = time.perf_counter()
    sizes = sorted(SIZES, key=lambda size: (size[0] * size[1], size))
    write_ranking(folder / SAMPLES, folder / CAPTIONS, folder / RANKING, sizes)
    ranked = time.perf_counter()
    files = {name: {"bytes": (folder / name).stat().st_size} for name in (SAMPLES, CAPTIONS, TEXTS, RANKING)}
    head = {"format_version": FORMAT_VERSION, "hash": "0" * 64, "shards": ["none"], "sizes": [], "files": files}
    (folder / HEAD).write_text(json.dumps(head), encoding="utf-8")
    return {"build: seconds to write": written - started, "build: seconds to rank": ranked - written}


def _seek(folder: Path, count: int, seeks: int) -> dict[str, float]:
    """Packs all over three epochs: with none of the files' pages in memory, and once they are."""
    for name in (SAMPLES, CAPTIONS, RANKING):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    plan = RaggedPlan(source_of(Manifest(folder)), tokens=25_600)
    opened = time.perf_counter()
    lots = random.Random(5)
    indices = [lots.randrange(3 * plan.packs_per_epoch) for _ in range(seeks)]
    result = {"seek: ms to open": 1e3 * (opened - started), "seek: packs per epoch": plan.packs_per_epoch}
    for state in ("cold", "warm"):
        times, own = [], []
        for index in indices:
            started, worked = time.perf_counter(), time.thread_time()
            plan.pack(index)
            times.append(1e3 * (time.perf_counter() - started))
            own.append(1e3 * (time.thread_time() - worked))
        result |= {f"seek: {state}, median ms": statistics.median(times), f"seek: {state}, most ms": max(times)}
        result |= {f"seek: {state}, median ms of CPU": statistics.median(own)}
        result |= {f"seek: {state}, most ms of CPU": max(own)}
    return result


if __name__ == "__main__":
    main()
