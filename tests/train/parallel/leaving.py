"""Two ranks that meet in every group and leave.

    torchrun --nproc-per-node 2 leaving.py

Each prints the names of the threads of its groups, before and after, a line each.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.world import World


def threads():
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


def main():
    world = World.join(torch.device("cpu"), timeout_s=60)
    world.mesh(ParallelConfig())
    world.meet("the beginning")
    world.barrier("the end")
    print(*threads())
    world.leave()
    print(*threads())


if __name__ == "__main__":
    main()
