"""How much faster does this trainer take a set of images than a padded, bucketed loop over the same model?

Both train the same denoiser with the same optimizer on the same samples: tokens of images and features of captions of
20 to 300 tokens, a tenth of them left out. One side is `Trainer` on the ragged plan. The other is a loop in the manner
of the diffusers examples, written here: one bucket per batch, captions padded to 512 and masked.

    python benchmarks/train_padded.py --mix 256 --samples 240 --threads 1
    python benchmarks/train_padded.py --mix 27-buckets --samples 54 --threads 1 --out runs/benchmarks/train_padded.json

Two minutes and six. docs/reports/train-padded.md has what they found.

Each round is one epoch of either side. Prints images per second, and their ratio beside the one that FLOPs alone
predict. Times are medians; where others disturb, look at the fastest rounds.

Suffixes: B images of a batch, N image tokens of one, S text tokens, J = N + S; T tokens of all captions; C channels,
E text width.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from inference import PaddedLens, processor, rope, timestep_flops, token_flops
from torch import Tensor

from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.registry import load_registry
from lens_train.checkpoint.store import CheckpointStore
from lens_train.data.text import Captions
from lens_train.loop.budget import Budget
from lens_train.loop.trainer import Trainer
from lens_train.objective.config import ObjectiveConfig
from lens_train.optim.build import Optimizers
from lens_train.optim.config import OptimizerConfig
from lens_train.optim.ema import Ema
from lens_train.parallel.world import World
from lens_train.planning.buckets import BucketPlan
from lens_train.planning.costs import CostModel
from lens_train.planning.manifest_writer import ManifestWriter
from lens_train.planning.ragged import RaggedPlan
from lens_train.planning.samples import SampleSource
from lens_train.planning.sizes import size_table
from lens_train.watch.config import WatchConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_train.planning.manifest import Manifest

SIDES = ("lens", "padded")
STRIDE, CHANNELS, WIDTH = 16, 48, 128
PADDED_TEXT = 512
MIXES: dict[str, tuple[list[tuple[int, int]], dict[int, int]]] = {
    "256": ([(256, 256)], {256: 16}),
    "27-buckets": ([size for base in (512, 768, 1024) for size in size_table(base, STRIDE)], {512: 4, 768: 2, 1024: 1}),
}
"""Sizes, and images of a padded batch by base: the paper's 24, 10 and 6, divided by six."""


class FrozenFeatures:
    """A text encoder that costs nothing: a table of random features. Captions are words, which are a token each."""

    trainable = False

    def __init__(self) -> None:
        self.table = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each word."""
        return [["abcdefgh".index(word) for word in text.split()] for text in texts]

    def __call__(self, ids_T: Tensor, offsets: Tensor) -> list[Tensor]:
        """Features [T, E] of a single layer."""
        return [self.table[ids_T]]


class PaddedLoop:
    """A training loop as examples have it.

    Args:
        model: the denoiser, which the padded model shares its weights with.
        plan: batches of one size.
        bench: where tokens and captions come from.
    """

    def __init__(self, model: Any, plan: BucketPlan, bench: Bench):
        self.model = PaddedLens.sharing(model).train().requires_grad_(True)
        self.plan, self.bench = plan, bench
        self.optimizers = Optimizers(bench.optimizer, [self.model])
        self.ema = Ema({"transformer": self.model}, 0.99)
        self.axes = model.config["axes_dims_rope"]

    def epoch(self) -> int:
        """One pass over all samples; returns how many there were."""
        return sum(self.step(number) for number in range(self.plan.packs_per_epoch))

    def step(self, number: int) -> int:
        """One batch."""
        samples = self.plan.pack(number).samples
        clean_BNC = torch.stack(self.bench.tokens([sample.number for sample in samples]))
        noise_BNC = torch.randn_like(clean_BNC)
        t_B = torch.sigmoid(torch.randn(len(samples)))
        x_BNC = clean_BNC + t_B[:, None, None] * (noise_BNC - clean_BNC)
        grid = samples[0].height // STRIDE, samples[0].width // STRIDE
        output_BNC = self.forward(x_BNC, [self.bench.caption(sample.caption) for sample in samples], t_B, grid)
        loss = F.mse_loss(output_BNC, noise_BNC - clean_BNC)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.bench.optimizer.clip)
        self.optimizers.step()
        self.optimizers.zero_grad()
        self.ema.update(number)
        return len(samples)

    def forward(self, x_BNC: Tensor, captions: list[str], t_B: Tensor, grid: tuple[int, int]) -> Tensor:
        """The padded model's velocity [B, N, C]."""
        features = self.bench.features
        text_BSE = torch.zeros(len(captions), PADDED_TEXT, WIDTH)
        hidden_BS = torch.ones(len(captions), PADDED_TEXT, dtype=torch.bool)
        for row, ids in enumerate(features.tokenize(captions)):
            text_BSE[row, : len(ids)] = features.table[ids]
            hidden_BS[row, : len(ids)] = False
        bias_BJ = F.pad(torch.zeros(hidden_BS.shape).masked_fill(hidden_BS, -torch.inf), (grid[0] * grid[1], 0))
        rope_JP2 = rope(grid, PADDED_TEXT, self.axes)
        output: Tensor = self.model(x_BNC, [text_BSE], bias_BJ[:, None, None], t_B, rope_JP2)
        return output


class Bench:
    """Samples, and both loops over one model.

    Args:
        options: of the command line.
        folder: for files.
    """

    def __init__(self, options: argparse.Namespace, folder: Path):
        sizes, batches = MIXES[options.mix]
        self.features = FrozenFeatures()
        generator = torch.Generator().manual_seed(2)
        self.optimizer = OptimizerConfig(type="adamw", lr=1e-4, warmup_steps=0)
        registry = load_registry()
        config = registry.parse("models", {"type": "lens", "preset": options.preset, "num_layers": options.layers})
        self.model = registry.build("models", config, in_channels=CHANNELS, enc_hidden_dim=WIDTH, num_text_layers=1)
        self.model.init_weights(0)
        with torch.no_grad():
            for parameter in self.model.parameters():  # fresh weights say nothing yet, on either side
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        self.manifest = written(folder / "manifest", sizes, options.samples)
        grids = [(height // STRIDE) * (width // STRIDE) for height, width in zip(*self._sides(), strict=True)]
        self.images = [torch.randn(count, CHANNELS, generator=generator) for count in grids]
        source = SampleSource(
            manifest=self.manifest,
            costs=CostModel.of(self.model.config),
            stride=STRIDE,
            seed=7,
            caption_dropout=0.1,
        )
        self.padded = PaddedLoop(self.model, BucketPlan(source, batches), self)
        packs = self.padded.plan.packs_per_epoch
        self.plan = RaggedPlan(source, samples=-(-len(self.manifest) // packs))
        self.trainer = self._trainer(folder)
        self.loader = self.trainer.loader()

    def epoch(self, side: str) -> int:
        """One pass over all samples; returns how many there were."""
        if side == "padded":
            return self.padded.epoch()
        before = self.trainer.counters.images
        for _ in range(self.plan.packs_per_epoch):
            self.trainer.train_step([next(self.loader)])
        return self.trainer.counters.images - before

    def flops(self) -> dict[str, float]:
        """FLOPs of an epoch, forward and backward, by side; nothing flows back through the last block's text half."""
        config, work = self.model.config, dict.fromkeys(SIDES, 0.0)
        for side, plan in (("lens", self.plan), ("padded", self.padded.plan)):
            for number in range(plan.packs_per_epoch):
                samples = plan.pack(number).samples
                images = [sample.image_tokens for sample in samples]
                texts = [PADDED_TEXT if side == "padded" else sample.text_tokens for sample in samples]
                useful = token_flops(config, images, texts, last_text_half=False)
                forward = token_flops(config, images, texts, last_text_half=side == "padded")
                work[side] += forward + 2 * useful + 3 * timestep_flops(config, len(samples))
        return work

    @torch.no_grad()
    def difference(self) -> float:
        """How far the two models' outputs are apart on a batch that both can take."""
        samples = self.padded.plan.pack(0).samples
        x_BNC = torch.stack(self.tokens([sample.number for sample in samples]))
        captions = [self.caption(sample.caption) for sample in samples]
        t_B, grid = torch.linspace(0.1, 0.9, len(samples)), (samples[0].height // STRIDE, samples[0].width // STRIDE)
        ids = self.features.tokenize(captions)
        ragged = RaggedBatch(
            image=x_BNC.flatten(0, 1),
            text=self.features(torch.tensor([token for one in ids for token in one], dtype=torch.long), offsets_of([])),
            image_offsets=offsets_of([x_BNC.shape[1]] * len(samples)),
            text_offsets=offsets_of([len(one) for one in ids]),
            grids=torch.tensor([grid] * len(samples)),
            timestep=t_B,
        )
        ours_BNC = self.model.forward_ragged(ragged).view_as(x_BNC)
        return float((ours_BNC - self.padded.forward(x_BNC, captions, t_B, grid)).abs().max())

    def tokens(self, numbers: Sequence[int]) -> list[Tensor]:
        """Image tokens [N, C] of samples."""
        return [self.images[number] for number in numbers]

    def caption(self, row: int | None) -> str:
        """A caption, or none."""
        return "" if row is None else self.manifest.caption_text(row)

    def _sides(self) -> tuple[list[int], list[int]]:
        return self.manifest.samples["height"].tolist(), self.manifest.samples["width"].tolist()

    def _trainer(self, folder: Path) -> Trainer:
        world = World(device=torch.device("cpu"))
        return Trainer(
            transformer=self.model,
            captions=Captions(self.features, cache_bytes=0),
            autoencoder=SimpleNamespace(stride=STRIDE, channels=CHANNELS),  # type: ignore[arg-type]
            manifest=self.manifest,
            plan=self.plan,
            source=self.tokens,  # type: ignore[arg-type]
            sides=[256, 512, 768, 1024],
            packs_per_step=1,
            workers=0,
            flops=lambda images, texts: self.model.training_flops(images, texts, text_gradient=False),
            objective=ObjectiveConfig(),
            prediction=PredictionConfig(type="velocity"),
            optimizer=self.optimizer,
            budget=Budget(steps=1_000_000),
            ema_decay=0.99,
            dtype=torch.float32,
            world=world,
            store=CheckpointStore(folder / "checkpoints", world),
            folder=folder,
            watch=WatchConfig(),
            seed=7,
            save_every_s=1e9,
            max_bad_samples=0,
        )


def written(folder: Path, sizes: Sequence[tuple[int, int]], count: int) -> Manifest:
    """So many samples, as many of each size, with captions of 20 to 300 tokens."""
    lots = random.Random(5)
    with ManifestWriter(folder) as writer:
        for number in range(count):
            height, width = sizes[number % len(sizes)]
            words = [lots.choice("abcdefgh") for _ in range(lots.randint(20, 300))]
            writer.add(
                key=lots.randbytes(32).hex(),
                shard=0,
                offset=number,
                size=1,
                height=height,
                width=width,
                captions=[(" ".join(words), len(words))],
            )
        return writer.close(["none"])


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Time epochs of both sides in turn, so that both meet the same machine."""
    difference = bench.difference()
    bench.padded.step(0)
    bench.trainer.train_step([next(bench.loader)])
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 else reversed(SIDES):
            started = time.perf_counter()
            images = bench.epoch(side)
            seconds[side].append((time.perf_counter() - started) / images)
    work = bench.flops()
    median = {side: statistics.median(seconds[side]) for side in SIDES}
    return {
        "samples": len(bench.manifest),
        "difference": difference,
        "ratio": median["padded"] / median["lens"],
        "ratio_of_fastest": min(seconds["padded"]) / min(seconds["lens"]),
        "flops_ratio": work["padded"] / work["lens"],
        **{
            side: {
                "images_per_s": 1 / median[side],
                "gflop_per_image": work[side] / len(bench.manifest) / 1e9,
                "gflops": work[side] / len(bench.manifest) / median[side] / 1e9,
                "seconds_per_image": seconds[side],
            }
            for side in SIDES
        },
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mix", default="256", choices=MIXES, help="256 pixels, or 27 sizes of 512, 768 and 1024")
    parser.add_argument("--samples", type=int, default=240, help="of an epoch")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Bench(options, Path(folder)), options.rounds)
    result |= {
        "benchmark": "train_padded",
        "date": date.today().isoformat(),
        "mix": options.mix,
        "preset": options.preset,
        "layers": options.layers,
        "load": round(os.getloadavg()[0], 1),
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    for side in SIDES:
        row = result[side]
        print(
            f"{side:8}{row['images_per_s']:8.2f} images/s{row['gflop_per_image']:8.2f} GFLOP per image"
            f"{row['gflops']:8.1f} GFLOP/s"
        )
    print(
        f"{options.mix}: {result['ratio']:.2f}x the padded loop's images/s ({result['ratio_of_fastest']:.2f}x by the "
        f"fastest rounds), and {result['flops_ratio']:.2f}x by FLOPs alone; outputs differ by "
        f"{result['difference']:.1e} at most; load {result['load']}"
    )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
