"""What four ranks make of two steps, as two copies of two shards each.

    torchrun --nproc-per-node 4 four_ranks.py FOLDER

Rank 0 leaves whole tensors in FOLDER/NAME.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from lens_train.parallel.world import World
from train.parallel.nano import Run


def main(folder):
    world = World.join(torch.device("cpu"), timeout_s=60)
    torch.set_num_threads(1)

    def keep(name, tensors):
        whole = {key: tensor.full_tensor().detach().contiguous() for key, tensor in tensors.items()}
        if world.is_main:
            save_file(whole, folder / f"{name}.safetensors")

    run = Run(world, dtype=torch.float64, replicate=2, shard=2)
    parameters = dict(run.model.named_parameters())
    assert {str(p.placements) for p in parameters.values()} == {"(Replicate(), Shard(dim=0))"}
    run.backward(0)
    keep("gradients", {name: p.grad for name, p in parameters.items() if p.grad is not None})
    run.optimizers.zero_grad()
    run.steps(0, 2)
    keep("weights", parameters)
    world.barrier("the end")
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
