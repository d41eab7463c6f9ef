"""What two ranks keep in 8 bits, save and load; rank 0 then goes on alone, and both again from there.

    python eight_bit_ranks.py FOLDER TORCHAO

TORCHAO is the folder that the library is in. Each rank leaves what it found in FOLDER/rank-R.json.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import distribute_tensor

from lens_train.checkpoint.state import TrainingState
from lens_train.checkpoint.store import CheckpointStore
from lens_train.optim.build import Optimizers
from lens_train.optim.config import OptimizerConfig
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.shard import shard
from lens_train.parallel.world import World
from train.checkpoint.two_ranks import same, whole

# In 8 bits: with rows that do not divide by two; for one rank only, and for each of two; never.
SHAPES = {"uneven": (67, 256), "large": (40, 128), "halved": (64, 128), "small": (9, 10)}


class Matrices(nn.Module):
    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator)))


class Run:
    def __init__(self, world, seed):
        self.model = Matrices(seed)
        shard(self.model, world, ParallelConfig())
        self.optimizers = Optimizers(OptimizerConfig(type="adamw-8bit", lr=0.01), [self.model])
        self.state = TrainingState({"model": self.model}, self.optimizers.parts)

    def steps(self, first, last):
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            for parameter in self.model.parameters():
                gradient = torch.randn(parameter.shape, generator=generator)
                mesh = getattr(parameter, "device_mesh", None)
                parameter.grad = distribute_tensor(gradient, mesh, parameter.placements) if mesh else gradient
            self.optimizers.step()


def main(folder):
    world, alone = World.join(torch.device("cpu"), timeout_s=100), World(device=torch.device("cpu"))
    torch.set_num_threads(1)
    found = {}
    run, two = Run(world, 0), CheckpointStore(folder / "two", world)
    run.steps(0, 3)
    third = whole(run.state)
    two.save(3, run.state, {})
    two.wait()
    run.steps(3, 5)
    fifth = whole(run.state)

    again = Run(world, 1)
    two.load_latest(again.state)
    found["loaded"] = same(whole(again.state), third)
    again.steps(3, 5)
    found["resumed"] = same(whole(again.state), fifth)

    if world.is_main:
        single, one = Run(alone, 2), CheckpointStore(folder / "one", alone)
        CheckpointStore(folder / "two", alone).load_latest(single.state)
        found["on one"] = far(whole(single.state), third)
        one.save(3, single.state, {})
        one.wait()
    world.barrier("one rank has saved")
    both = Run(world, 3)
    CheckpointStore(folder / "one", world).load_latest(both.state)
    found["on two again"] = far(whole(both.state), third)
    both.steps(3, 5)
    found["both went on"] = far(whole(both.state), fifth)

    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))
    world.leave()


def far(found, expected):
    """How far tensors are from what they should be, beside their largest number."""
    assert found.keys() == expected.keys()
    return {name: ((found[name] - tensor).abs().max() / tensor.abs().max()).item() for name, tensor in expected.items()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the library's own
    sys.path.append(sys.argv[2])
    main(Path(sys.argv[1]))
