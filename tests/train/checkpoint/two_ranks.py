"""What two ranks save and load, each question after the other: processes are started once for all of them.

    torchrun --nproc-per-node 2 two_ranks.py FOLDER

Rank 0 leaves whole tensors in FOLDER/NAME.safetensors, and each rank what it found in FOLDER/rank-R.json.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from lens_core.errors import LensError
from lens_train.checkpoint.state import TrainingState
from lens_train.checkpoint.store import CheckpointStore
from lens_train.parallel.world import World
from train.parallel.nano import Run


def state_of(run):
    return TrainingState({"transformer": run.model}, run.optimizers.parts, run.ema)


def whole(state):
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in state.tensors().items()
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@contextmanager
def small_files(bytes_):
    """No file of this process grows beyond a size: as a full disk, but for this rank alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def main(folder):
    world = World.join(torch.device("cpu"), timeout_s=60)
    torch.set_num_threads(1)
    alone = World(device=torch.device("cpu"))
    found = {}

    def keep(name, tensors):
        if world.is_main:
            save_file(tensors, folder / f"{name}.safetensors")

    # Five steps, saved after the third while the fourth and fifth go on.
    run = Run(world)
    state = state_of(run)
    store = CheckpointStore(folder / "two", world)
    found["empty"] = store.load_latest(state)
    run.steps(0, 3)
    third = whole(state)
    store.save(3, state, {"step": 3})
    run.steps(3, 5)
    store.wait()
    fifth = whole(state)
    keep("third", third)
    keep("fifth", fifth)

    other = Run(world, seed=9)
    resumed = state_of(other)
    found["meta"] = CheckpointStore(folder / "two", world).load_latest(resumed)
    found["loaded"] = same(whole(resumed), third)
    found["sharded as parameters are"] = all(
        value.placements == parameter.placements
        for part in other.optimizers.parts
        for parameter, own in part.state.items()
        for value in own.values()
        if value.shape == parameter.shape
    )
    other.steps(3, 5)
    found["resumed"] = same(whole(resumed), fifth)

    # Two ranks to one, and back to two.
    if world.is_main:
        single = Run(alone, seed=4)
        CheckpointStore(folder / "two", alone).load_latest(state_of(single))
        found["on one"] = same(whole(state_of(single)), third)
        one = CheckpointStore(folder / "one", alone)
        one.save(3, state_of(single), {"step": 3})
        one.wait()
    world.barrier("one rank has saved")
    third_time = Run(world, seed=5)
    CheckpointStore(folder / "one", world).load_latest(state_of(third_time))
    found["on two again"] = same(whole(state_of(third_time)), third)

    # Sharded otherwise: each rank holds a copy.
    copies = Run(world, seed=6, replicate=2, shard=1)
    CheckpointStore(folder / "two", world).load_latest(state_of(copies))
    found["as copies"] = same(whole(state_of(copies)), third)
    twice = CheckpointStore(folder / "copies", world)
    twice.save(3, state_of(copies), {})
    twice.wait()
    found["copies"] = sorted(path.name for path in (folder / "copies" / "step-00000003").iterdir())

    # The disk is full for one rank only.
    full = CheckpointStore(folder / "two", world)
    full.load_latest(state)
    run.steps(3, 4)
    try:
        if world.rank == 1:
            with small_files(4096):
                full.save(4, state, {"step": 4})
                full.wait()
        else:
            full.save(4, state, {"step": 4})
            full.wait()
    except LensError as error:
        found["full"] = str(error)
    found["after full"] = full.latest().name
    full.save(4, state, {"step": 4})
    full.wait()
    found["after room"] = full.latest().name

    other = Run(world, optimizer="adamw")
    try:
        CheckpointStore(folder / "two", world).load_latest(state_of(other))
    except LensError as error:
        found["another"] = str(error)

    # One rank's file is gone.
    world.barrier("nobody reads any more")
    if world.is_main:
        shutil.copytree(folder / "two", folder / "torn")
        (folder / "torn" / "step-00000004" / "rank-00001.safetensors").write_bytes(b"no tensors")
    world.barrier("one file is torn")
    try:
        CheckpointStore(folder / "torn", world).load_latest(state_of(run))
    except LensError as error:
        found["torn"] = str(error)

    (folder / f"rank-{world.rank}.json").write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
