"""What two ranks do, each question after the other: processes are started once for all of them.

    torchrun --nproc-per-node 2 two_ranks.py FOLDER

Rank 0 leaves whole tensors in FOLDER/NAME.safetensors, and each rank what it found in FOLDER/rank-R.json. What single
processes make of the same is for the tests to say.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from functools import partialmethod
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor

from lens_core.diffusion.models.lens.model import LensTransformer2DModel
from lens_train.optim.muon import Muon
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.shard import clip_gradients, full_weights, shard
from lens_train.parallel.world import World
from train.parallel.nano import Run

SHAPES = [(5, 8), (5, 8), (5, 8), (3, 4), (1, 6), (8, 8), (8, 8)]


class Matrices(nn.Module):
    """Matrices whose rows do not all divide by two, and one that leaves the second rank nothing."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.all = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES)

    def gradients(self, step):
        generator = torch.Generator().manual_seed(step)
        return [torch.randn(shape, generator=generator) for shape in SHAPES]


def gather(named):
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in named.items()}


def held():
    """What this process holds: tensors, open files, and megabytes."""
    gc.collect()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return tensors, len(list(Path("/proc/self/fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(folder):
    world = World.join(torch.device("cpu"), timeout_s=60)
    torch.set_num_threads(1)
    found = {"rank": world.rank, "size": world.size}

    def keep(name, tensors):
        whole = {key: tensor.detach().contiguous() for key, tensor in gather(tensors).items()}
        if world.is_main:
            save_file(whole, folder / f"{name}.safetensors")

    found["lines"] = world.gather([f"of {world.rank}"] * world.rank)
    own = torch.tensor([1.0, 10.0], dtype=torch.float64) * (world.rank + 1)
    found["sum"] = world.sum_over(own).tolist()
    found["kept"] = own.tolist()

    for name, options in {
        "adamw-fp64": {"optimizer": "adamw", "dtype": torch.float64},
        "muon-fp64": {"optimizer": "muon", "dtype": torch.float64},
        "muon-fp32": {"optimizer": "muon"},
        "replicated-fp64": {"optimizer": "muon", "dtype": torch.float64, "replicate": 2, "shard": 1},
    }.items():
        run = Run(world, **options)
        found[f"{name} norms"] = run.steps(0, 3)
        found[f"{name} placements"] = sorted({str(p.placements) for p in run.model.parameters()})
        keep(name, dict(run.model.named_parameters()))
        keep(f"{name}-ema", run.ema.averages)
        found[f"{name} parameters"] = sum(p.to_local().numel() for p in run.model.parameters())

    with run.ema.swapped():
        keep("swapped", dict(run.model.named_parameters()))
    keep("swapped-back", dict(run.model.named_parameters()))
    whole = full_weights(run.model, world)
    found["whole"] = len(whole)
    if world.is_main:
        save_file(whole, folder / "whole.safetensors")

    run = Run(world, dtype=torch.float64)
    found["accumulated norms"] = run.steps(0, 2, packs=2)
    keep("accumulated", dict(run.model.named_parameters()))

    # Everything of the compiler but the code that it makes, which takes minutes.
    whole_compiler = LensTransformer2DModel.compile_blocks
    LensTransformer2DModel.compile_blocks = partialmethod(whole_compiler, backend="aot_eager")
    run = Run(world, dtype=torch.float64, activation_checkpointing="full", compile=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        run.backward(7)
    keep("gradients-compiled", {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None})
    found["graphs"] = counters["stats"]["unique_graphs"]
    LensTransformer2DModel.compile_blocks = whole_compiler

    for policy in ("none", "selective", "full"):
        run = Run(world, dtype=torch.float64, activation_checkpointing=policy)
        run.backward(7)
        keep(f"gradients-{policy}", {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None})

    # One rank's gradient is not finite: both see it, in the same norm.
    if world.rank == 1:
        next(p for p in run.model.parameters() if p.grad is not None).grad.to_local().fill_(float("nan"))
    found["norm is finite"] = bool(torch.isfinite(clip_gradients(list(run.model.parameters()), 1.0)))

    run = Run(world)
    run.steps(0, 20)
    found["held"] = [held()]
    run.steps(20, 120)
    found["held"].append(held())

    run = Run(world, precision="bf16")
    seen = []
    block = run.model.transformer_blocks[0]
    block.img_mlp.register_forward_pre_hook(lambda module, _: seen.append(str(module.w1.weight.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run.backward(0)
    found["bf16 compute"] = seen
    found["bf16 masters"] = sorted({str(p.dtype) for p in run.model.parameters()})
    found["bf16 gradients"] = sorted({str(p.grad.dtype) for p in run.model.parameters() if p.grad is not None})
    run = Run(world)
    run.backward(0)
    keep("gradients-fp32", {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None})
    run = Run(world, precision="bf16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run.backward(0)
    keep("gradients-bf16", {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None})

    matrices = Matrices()
    shard(matrices, world, ParallelConfig())
    optimizer = Muon(matrices.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        for parameter, gradient in zip(matrices.parameters(), matrices.gradients(step), strict=True):
            parameter.grad = torch.distributed.tensor.distribute_tensor(
                gradient, parameter.device_mesh, parameter.placements
            )
        optimizer.step()
    keep("matrices", dict(matrices.named_parameters()))

    world.barrier("the end")
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
