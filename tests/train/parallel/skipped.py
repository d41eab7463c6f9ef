"""Steps of a trainer on two ranks, of which one has features that are no numbers, twice.

    torchrun --nproc-per-node 2 skipped.py CAPTIONS FOLDER

Each rank leaves what it found in FOLDER/rank-R.json.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

from lens_core.errors import LensError
from lens_core.registry import load_registry
from lens_core.storage.artifacts import load_artifact
from lens_train.optim.config import OptimizerConfig
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.shard import shard
from lens_train.parallel.world import World
from lens_train.stages.train.stage import build_trainer
from train.contexts import context_in

TRAIN = {
    "name": "model",
    "type": "train",
    "source": "dense",
    "model": {"type": "lens", "preset": "nano", "num_layers": 1},
    "budget": {"steps": 9},
    "batch": {"samples": 4, "packs_per_step": 2},
    "threads": 1,
    "device": "cpu",
}


def sharded_trainer(world, captions, folder):
    """The trainer of a train stage, whose weights lie on all ranks."""
    registry = load_registry()
    context = context_in(folder / f"rank-{world.rank}", registry, [load_artifact(captions)])
    alone, _ = build_trainer(registry.parse("stages", TRAIN), context)
    for module in alone.modules.values():
        shard(module, world, ParallelConfig())
    return replace(alone, world=world)


def main(captions, folder):
    world = World.join(torch.device("cpu"), timeout_s=60)
    trainer = sharded_trainer(world, captions, folder)
    loader, calls, found = trainer.loader(), [], {}

    def hiccup(_module, _inputs, layers):
        calls.append(layers)
        return [layer * math.nan for layer in layers] if world.rank == 1 and len(calls) in {2, 4} else None

    trainer.captions.encoder.register_forward_hook(hiccup)

    def weights():
        """This rank's rows of the weights and of their average."""
        tensors = [*trainer.parameters, *trainer.ema.averages.values()]
        return [tensor.detach().to_local().clone() for tensor in tensors]

    def step():
        before = weights()
        record = trainer.train_step([next(loader)])
        moved = not all(torch.equal(old, now) for old, now in zip(before, weights(), strict=True))
        return {"finite": math.isfinite(record["grad_norm"]), "moved": moved, "skipped": trainer.counters.skipped}

    found["steps"] = [step() for _ in range(3)]
    trainer.optimizer = OptimizerConfig(max_skipped=1)
    try:
        step()
    except LensError as error:
        found["told"] = str(error)
    world.barrier("the end")
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
