"""How much of a GPU's matrix rate does training reach?

Takes whole training steps, as the trainer takes them on one GPU: forward and backward in bfloat16 over float32 weights,
clipping, AdamW, the average of the weights. The blocks are the real ones, 1536 wide; a few of them stand for all 48.
Packs hold pictures of 512², of 1024², or of both, with captions of 20 to 300 tokens, and no two packs are alike.
Compared are attention by variable-length kernels, by FlexAttention, and by dense calls that are padded and masked.

    python benchmarks/train_gpu.py --out docs/reports/train-gpu.json
    python benchmarks/train_gpu.py --packs mixed --recompute none selective full --plain
    python benchmarks/train_gpu.py --smoke    # a tiny model on the CPU, where most of this cannot run

Between the rounds of every case one large product is timed in the same dtype: a step's rate is told as a share of that,
and, where the maker states a peak, as MFU. Both count what the model needs for its real tokens, and nothing that is
padded or computed again. Memory is the most that the allocator held: in all, and over weights, optimizer and averages.
Images per second are those that all 48 blocks would reach at the same rate.

Prints a table in Markdown; a case that cannot run says why in its row, and does not stop the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens_core.diffusion import LensTransformer2DModel
from lens_core.diffusion.flops import denoiser_flops
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_train.optim.build import Optimizers
from lens_train.optim.config import OptimizerConfig
from lens_train.optim.ema import Ema
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.shard import clip_gradients, shard
from lens_train.parallel.world import World
from lens_train.watch.flops import stated_peak

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PACKS = {"512": (32,), "1024": (64,), "mixed": (32, 64)}
"""Tokens along a side of the pictures of a pack; a token is 16 pixels wide."""

ATTENTION = {"padded": "reference", "varlen": "varlen", "flex": "flex"}
"""The backends by what they do. The first that runs is what the others' outputs are compared with."""

CAPTION = (20, 300)
WHOLE = 48
SMOKE: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
SMOKE |= {"in_channels": 16, "out_channels": 4, "enc_hidden_dim": 24}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table."""

    pack: str
    attention: str
    recompute: str
    compiled: bool


def fields(options: argparse.Namespace) -> dict[str, Any]:
    """Of the model that is timed: the released one's, but for its depth."""
    return {"num_layers": options.blocks, **(SMOKE if options.smoke else {})}


class Bench:
    """A device, packs, and what is to be timed over them.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.device = torch.device("cpu" if options.smoke else "cuda")
        self.options = options
        with torch.device("meta"):
            self.config = LensTransformer2DModel(**fields(options)).config
        self._first_outputs: dict[str, Tensor] = {}

    def packs(self, kind: str) -> list[tuple[RaggedBatch, Tensor]]:
        """Batches and their goals, the same for all cases."""
        generator = torch.Generator().manual_seed(0)
        sides = [side // 8 if self.options.smoke else side for side in PACKS[kind]]

        def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device, dtype)

        made = []
        for _ in range(self.options.steps):
            chosen: list[tuple[int, int]] = []
            while True:
                side = sides[int(torch.randint(len(sides), (), generator=generator))]
                caption = int(torch.randint(CAPTION[0], CAPTION[1] + 1, (), generator=generator))
                used = sum(own * own + text for own, text in chosen)
                if chosen and used + side * side + caption > self.options.tokens:
                    break
                chosen.append((side, caption))
            images, texts = [side * side for side, _ in chosen], [caption for _, caption in chosen]
            batch = RaggedBatch(
                image=draw(sum(images), self.config["in_channels"]),
                text=[
                    draw(sum(texts), self.config["enc_hidden_dim"], dtype=torch.bfloat16)
                    for _ in self.config["selected_layer_index"]
                ],
                image_offsets=offsets_of(images),
                text_offsets=offsets_of(texts),
                grids=torch.tensor([(side, side) for side, _ in chosen]),
                timestep=torch.rand(len(chosen), generator=generator).to(self.device),
            )
            out = self.config["patch_size"] ** 2 * self.config["out_channels"]
            made.append((batch, draw(sum(images), out)))
        return made

    def flops(self, packs: Sequence[tuple[RaggedBatch, Tensor]], blocks: int) -> float:
        """What the model needs for a step on each of the packs, if it has so many blocks."""
        config = self.config | {"num_layers": blocks}
        return sum(denoiser_flops(config, batch.image_lengths, batch.text_lengths) for batch, _ in packs)

    def measure(self, case: Case) -> dict[str, Any]:
        """Time a case in rounds, with one large product between them.

        Raises:
            RuntimeError: it cannot run here, or not in this memory.
        """
        packs = self.packs(case.pack)
        torch.manual_seed(0)
        with self.device:
            model = LensTransformer2DModel(**fields(self.options))
        model.set_attention_backend(ATTENTION[case.attention])
        settings = ParallelConfig(activation_checkpointing=case.recompute, compile=case.compiled, precision="bf16")
        shard(model, World(device=self.device), settings)
        started = time.perf_counter()
        difference = self._difference(case, model, packs[0][0])  # which compiles
        step = Step(model, self.device)
        self._seconds(lambda: [step(batch, goal) for _ in range(2) for batch, goal in packs])
        warming_s = time.perf_counter() - started
        memory = self._memory_held(restart=True)[0]
        peaks, rounds = [], []
        for _ in range(self.options.rounds):
            peaks.append(self._peak_rate())
            rounds.append(self._seconds(lambda: [step(batch, goal) for batch, goal in packs]))
        most = self._memory_held()[1]
        rate, peak = self.flops(packs, self.options.blocks) / statistics.median(rounds), max(peaks)
        stated = stated_peak(torch.cuda.get_device_name()) if self.device.type == "cuda" else None
        images = sum(len(batch.grids) for batch, _ in packs)
        return {
            "images_per_pack": images / len(packs),
            "tokens_per_pack": sum(len(b.image) + int(b.text_offsets[-1]) for b, _ in packs) / len(packs),
            "step_ms": 1e3 * statistics.median(rounds) / len(packs),
            "tflops": rate / 1e12,
            "measured_peak_tflops": peak / 1e12,
            "share_of_measured_peak": rate / peak,
            "mfu": rate / stated if stated else None,
            "images_per_s_of_all_blocks": images * rate / self.flops(packs, WHOLE),
            "peak_bytes": most,
            "over_state_bytes": None if most is None or memory is None else most - memory,
            "difference": difference,
            "warming_s": warming_s,
            "rounds_s": rounds,
        }

    def _difference(self, case: Case, model: Any, batch: RaggedBatch) -> float:
        """How far the output is from that of the first case with these packs, as a share of its size."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):  # as in training: nothing is compiled for this
            output = model.forward_ragged(replace(batch)).detach().float()
        first = self._first_outputs.setdefault(case.pack, output)
        return float((output - first).norm() / first.norm())

    def _seconds(self, job: Callable[[], Any]) -> float:
        """How long a job takes until the device is done with it."""
        self._wait()
        started = time.perf_counter()
        job()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _peak_rate(self) -> float:
        """FLOP/s of one large product, the best of five."""
        size = 256 if self.options.smoke else 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        torch.mm(a, b)
        return 2 * size**3 / min(self._seconds(lambda: torch.mm(a, b)) for _ in range(5))

    def _memory_held(self, *, restart: bool = False) -> tuple[int | None, int | None]:
        """Bytes of the device that are held now, and the most since this was last asked to restart."""
        if self.device.type != "cuda":
            return None, None
        if restart:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


class Step:
    """What the trainer does with a pack.

    Args:
        model: prepared for training.
        device: where it is.
    """

    def __init__(self, model: Any, device: torch.device):
        self.model, self.device = model, device
        self.parameters = list(model.parameters())
        self.optimizers = Optimizers(OptimizerConfig(type="adamw", lr=1e-5), [model])
        self.ema = Ema({"transformer": model}, 0.999)

    def __call__(self, batch: RaggedBatch, goal: Tensor) -> None:
        """One step; the layout of the batch is made anew, as that of a pack that was not seen before."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            output = self.model.forward_ragged(replace(batch))
        (output.float() - goal).square().mean().backward()
        clip_gradients(self.parameters, 1.0).item()
        self.optimizers.step()
        self.ema.update(1000)
        self.optimizers.zero_grad()


def run(bench: Bench, case: Case) -> dict[str, Any]:
    """The row of a case: what was measured, or why it cannot be."""
    try:
        row = bench.measure(case)
    except torch.OutOfMemoryError:
        row = {"problem": "not enough memory"}
    except RuntimeError as error:
        row = {"problem": str(error).strip().splitlines()[0][:100]}
    torch._dynamo.reset()  # graphs of another case count against the same limit
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return asdict(case) | row


COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("ms a step", "step_ms", "{:,.1f}".format),
    ("TFLOP/s", "tflops", "{:,.3g}".format),
    ("of the measured peak", "share_of_measured_peak", "{:.1%}".format),
    ("MFU", "mfu", "{:.1%}".format),
    ("images/s, 48 blocks", "images_per_s_of_all_blocks", "{:,.3g}".format),
    ("peak GB", "peak_bytes", lambda value: f"{value / 1e9:.1f}"),
    ("over state, GB", "over_state_bytes", lambda value: f"{value / 1e9:.1f}"),
    ("output differs", "difference", "{:.1e}".format),
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown; a case that could not run has its reason in the first column of numbers."""
    lines = [["Pack", "Attention", "Computed again", "Compiled", *(title for title, _, _ in COLUMNS)]]
    lines.append(["---"] * 4 + ["--:"] * len(COLUMNS))
    for row in rows:
        cells = [row["pack"], row["attention"], row["recompute"], "yes" if row["compiled"] else "no"]
        if "problem" in row:
            cells += [row["problem"].replace("|", "/"), *[""] * (len(COLUMNS) - 1)]
        else:
            cells += ["" if row[key] is None else shown(row[key]) for _, key, shown in COLUMNS]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write; what was measured is written after every case."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parsed(arguments)
    if not options.smoke and not torch.cuda.is_available():
        sys.exit("train_gpu: there is no CUDA GPU here; --smoke tries the machinery on a CPU")
    bench = Bench(options)
    result: dict[str, Any] = {
        "benchmark": "train_gpu",
        "smoke": options.smoke,
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/train_gpu.py", *arguments]),
        "machine": {
            "device": "CPU" if options.smoke else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
        "model": {"width": bench.config["inner_dim"], "blocks": options.blocks},
        "tokens": options.tokens,
        "captions": CAPTION,
        "cases": [],
    }
    compiled = [False] if options.plain or options.smoke else [False, True]
    for pack, attention, recompute, whether in product(options.packs, options.attention, options.recompute, compiled):
        if whether and recompute == "selective":
            continue  # which the compiler cannot do
        case = Case(pack=pack, attention=attention, recompute=recompute, compiled=whether)
        row = run(bench, case)
        result["cases"].append(row)
        print(*asdict(case).values(), row.get("problem") or f"{row['step_ms']:,.1f} ms", file=sys.stderr, flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{result['machine']['device']}, torch {torch.__version__}: {options.blocks} blocks of width "
        f"{bench.config['inner_dim']}, packs of up to {options.tokens:,} tokens\n\n{table(result['cases'])}"
    )
    return result


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packs", nargs="+", default=["512", "1024"], choices=PACKS)
    parser.add_argument("--attention", nargs="+", default=list(ATTENTION), choices=ATTENTION)
    parser.add_argument("--recompute", nargs="+", default=["none"], choices=["none", "selective", "full"])
    parser.add_argument("--plain", action="store_true", help="do not compile the blocks as well")
    parser.add_argument("--blocks", type=int, default=4, help="of the model that is timed")
    parser.add_argument("--tokens", type=int, default=None, help="of a pack at most; by default 24,576")
    parser.add_argument("--steps", type=int, default=4, help="packs, of which each is one step of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, to see that this runs")
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args(arguments)
    options.tokens = options.tokens or (512 if options.smoke else 24_576)
    return options


if __name__ == "__main__":
    main()
