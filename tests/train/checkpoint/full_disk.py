"""Saves on a disk that has no room for them; what was found is printed as JSON.

unshare -rm sh -c 'mount -t tmpfs -o size=4m tmpfs FOLDER && python full_disk.py FOLDER'
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch

from lens_core.errors import StorageError
from lens_train.checkpoint.store import CheckpointStore
from lens_train.parallel.world import World
from train.checkpoint.two_ranks import same, state_of
from train.parallel.nano import Run


def fill(file, room):
    """Take the disk's space, but for so many bytes."""
    with file.open("wb", buffering=0) as filler:
        with suppress(OSError):
            while True:
                filler.write(bytes(4096))
        filler.truncate(filler.tell() - room)


def main(folder):
    torch.set_num_threads(1)
    run = Run(World(device=torch.device("cpu")))
    state = state_of(run)
    run.steps(0, 1)
    store = CheckpointStore(folder / "checkpoints", run.world, keep_last=1)
    store.save(1, state, {"step": 1})
    store.wait()
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    size = (folder / "checkpoints" / "step-00000001" / "rank-00000.safetensors").stat().st_size
    run.steps(1, 2)
    found = []
    for room in (0, size // 2 // 4096 * 4096, (size // 4096 + 1) * 4096):
        fill(folder / "filler", room)
        try:
            store.save(2, state, {"step": 2})
            store.wait()
        except StorageError as error:
            told = str(error)
        other = Run(run.world, seed=5)
        meta = CheckpointStore(folder / "checkpoints", run.world).load_latest(state_of(other))
        found.append({"told": told, "meta": meta, "same": same(state_of(other).tensors(), saved)})
    (folder / "filler").unlink()
    store.save(2, state, {"step": 2})
    store.wait()
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    print(json.dumps({"full": found, "left": left}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
