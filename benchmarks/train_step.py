"""How much of a training step is matrix products?

Takes real steps of the quickstart's dense arm, writes down every matrix product that they call for (shape, strides,
dtype), and then times those alone. The step's own products, so timed, are the floor under the step's time: what is
above it is norms, activations, softmax, the optimizers' arithmetic, the batch, and Python.

    python benchmarks/train_step.py --steps 20 --out runs/benchmarks/train_step.json

Prints two ratios: the products' share of the step's time, and the step's rate as a share of what this machine reaches
on one large product. The fused attention kernels count as the products inside them, two forward and five backward.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lens_core.config.pipeline import load_pipeline
from lens_core.pipeline.context import StageContext
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.registry import load_registry
from lens_core.storage.artifacts import OutputFolder
from lens_train.stages.train.stage import build_trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_train.loop.trainer import Trainer

PRODUCTS = {"mm": 2, "addmm": 3, "bmm": 2, "baddbmm": 3}
"""The products, by the name of the operator, and how many of its arguments are matrices."""

FUSED = "_scaled_dot_product_flash_attention_for_cpu"
Call = tuple[str, tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]]


class Products(TorchDispatchMode):
    """Counts the matrix products that run while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.calls[name, tuple(_layout(tensor) for tensor in args[: PRODUCTS[name]])] += 1
        elif name == FUSED:
            self._attention(args[0], scores=1, values=1)
        elif name == FUSED + "_backward":
            # The scores again, then the gradients of values, weights, queries and keys.
            self._attention(args[1], scores=2, values=3)
        return func(*args, **(kwargs or {}))

    def _attention(self, query: torch.Tensor, *, scores: int, values: int) -> None:
        batch, heads, length, width = query.shape
        rows = torch.empty(batch * heads, length, width, dtype=query.dtype, device="meta")
        square = torch.empty(batch * heads, length, length, dtype=query.dtype, device="meta")
        self.calls["bmm", (_layout(rows), _layout(rows.mT))] += scores
        self.calls["bmm", (_layout(square), _layout(rows))] += values


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    parser.add_argument("--style", default="dense", choices=["alt-text", "brief", "dense"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = quickstart_trainer(options.style, Path(folder))
        result = measure(trainer, options.steps)
    result |= {
        "benchmark": "train_step",
        "date": date.today().isoformat(),
        "style": options.style,
        "machine": {"processor": _processor(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    print(f"step: {result['step_ms']:.0f} ms, its matrix products alone: {result['products_ms']:.0f} ms")
    print(f"products' share of the step: {result['products_share']:.0%}")
    print(
        f"rate of all products: {result['step_gflops']:.0f} GFLOP/s, {result['peak_share']:.0%} of the "
        f"{result['peak_gflops']:.0f} GFLOP/s of one large product"
    )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def quickstart_trainer(style: str, folder: Path) -> Trainer:
    """The trainer that the quickstart's train stage builds, over fewer images."""
    registry = load_registry()
    stages: list[dict[str, Any]] = [
        {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 4000}},
        {
            "name": "captions",
            "type": "caption",
            "source": "images",
            "captioner": {"type": "scene-graph", "style": style},
        },
        {"name": "model", "type": "train", "source": "captions", "budget": {"steps": 1_000_000}},
    ]
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps({"run": str(folder / "run"), "stages": stages[:2]}))
    artifacts = run_pipeline(load_pipeline(str(file), registry), registry)
    config = registry.parse("stages", stages[2])
    (folder / "state").mkdir()
    context = StageContext(
        name="model",
        inputs=(artifacts["captions"],),
        output=OutputFolder(str(folder / "model"), folder / "scratch"),
        state_dir=folder / "state",
        run_url=str(folder),
        base=str(folder),
        seed=0,
        registry=registry,
        progress=Progress(live=False),
    )
    trainer, _ = build_trainer(config, context)
    return trainer


def measure(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Time steps, their products alone, and one large product, in turn so that all meet the same machine."""
    loader = trainer.loader()
    for _ in range(3):
        trainer.train_step([next(loader)])
    step_s, products_s, flops = [], [], []
    for _ in range(steps):
        started = time.perf_counter()
        packs = [next(loader)]
        trainer.train_step(packs)
        step_s.append(time.perf_counter() - started)
        with Products() as products:
            trainer.train_step(packs)
        products_s.append(_seconds(products.calls))
        flops.append(sum(count * _flops(call) for call, count in products.calls.items()))
    large = torch.randn(2048, 2048), torch.randn(2048, 2048)
    peak = 2 * 2048**3 / _time(lambda: torch.mm(*large), 5)
    step, alone, work = statistics.median(step_s), statistics.median(products_s), statistics.median(flops)
    return {
        "steps": steps,
        "step_ms": 1e3 * step,
        "products_ms": 1e3 * alone,
        "products_share": alone / step,
        "step_gflops": work / step / 1e9,
        "peak_gflops": peak / 1e9,
        "peak_share": work / step / peak,
    }


def _seconds(calls: Counter[Call]) -> float:
    """The time of all products in a row, on random matrices of the recorded layouts.

    Every call has matrices of its own, as in the step: repeating one call would time it on warm caches. It is taken
    once, like the step's, so that the medians of both mean the same.
    """
    jobs = []
    for (name, layouts), count in calls.items():
        for _ in range(count):
            matrices = [torch.empty_strided(*layout[:2], dtype=layout[2]).normal_() for layout in layouts]
            jobs.append((getattr(torch, name), matrices))

    def run() -> None:
        for product, matrices in jobs:
            product(*matrices)

    return _time(run, 1)


def _time(run: Callable[[], Any], repeats: int) -> float:
    run()
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return best


def _flops(call: Call) -> float:
    name, layouts = call
    (left, _, _), (right, _, _) = layouts[-2:]
    return 2.0 * (left[0] if name in {"bmm", "baddbmm"} else 1) * left[-2] * left[-1] * right[-1]


def _layout(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
