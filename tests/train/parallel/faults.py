"""What ranks do when one of them is lost. Each function runs in one rank, and returns what the test should see."""

from __future__ import annotations

import os
import signal
import time
import traceback
from pathlib import Path

import torch

from lens_core.errors import LensError
from lens_train.checkpoint.state import TrainingState
from lens_train.checkpoint.store import CheckpointStore
from lens_train.parallel.world import World
from train.parallel.nano import Run

TIMEOUT_S = 8.0


def take_part(name, rank, size, lost, port, folder):
    """Be one rank of a scenario; leave in FOLDER/rank-R.txt how it ended."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        world = World.join(torch.device("cpu"), timeout_s=TIMEOUT_S)
        SCENARIOS[name](world, world.rank == lost, Path(folder))
        said = "ended well"
    except LensError as error:
        said = str(error)
    except BaseException:  # for the test to show
        said = traceback.format_exc()
    (Path(folder) / f"rank-{rank}.txt").write_text(said)
    os._exit(0)  # groups that have lost a rank are not closed in order


def sleeps(world, lost, folder):
    world.barrier("the plan")
    if lost:
        time.sleep(3600)
    world.barrier("the manifest")


def dies(world, lost, folder):
    world.barrier("the plan")
    if lost:
        os.kill(os.getpid(), signal.SIGKILL)
    world.barrier("the manifest")


def fails_alone(world, lost, folder):
    if lost:
        time.sleep(TIMEOUT_S + 2)  # which the others are not to give up after
    world.meet("the images")

    def build():
        raise LensError("nothing to train on")

    world.after_main("what goes well", lambda: None)
    world.after_main("the manifest", build)


def fails_without_words(world, lost, folder):
    def build():
        raise KeyboardInterrupt

    world.after_main("the manifest", build)


def dies_alone(world, lost, folder):
    world.barrier("the plan")
    world.after_main("the manifest", lambda: os.kill(os.getpid(), signal.SIGKILL))


def dies_before_they_meet(world, lost, folder):
    world.barrier("the plan")
    if lost:
        os.kill(os.getpid(), signal.SIGKILL)
    world.meet("the images")


def stops_in_a_step(world, lost, folder, **parallel):
    """Between a step's first collectives and its last: it came, and then it hung."""
    run = Run(world, **parallel)
    with world.watching("step 1"):
        run.steps(0, 1)
    with world.watching("step 2"):
        run.backward(1)
        if lost:
            os.kill(os.getpid(), signal.SIGSTOP)
        run.steps(1, 2)


def stops_in_a_step_of_copies(world, lost, folder):
    stops_in_a_step(world, lost, folder, replicate=2, shard=2)


class State(TrainingState):
    """A state that a rank hangs over."""

    lost = False

    def tensors(self):
        if self.lost:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().tensors()


def stops_in_a_save(world, lost, folder):
    run = Run(world)
    run.steps(0, 1)
    state = State({"transformer": run.model}, run.optimizers.parts, run.ema)
    store = CheckpointStore(folder / "checkpoints", world)
    store.save(1, state, {})
    store.wait()
    run.steps(1, 2)
    state.lost = lost
    store.save(2, state, {})
    store.wait()


def stops_in_a_load(world, lost, folder):
    run = Run(world)
    state = State({"transformer": run.model}, run.optimizers.parts, run.ema)
    store = CheckpointStore(folder / "checkpoints", world)
    store.save(1, state, {})
    store.wait()
    state.lost = lost
    store.load_latest(state)


SCENARIOS = {
    "sleeps": sleeps,
    "sleeps who keeps the store": sleeps,
    "sleeps before two": sleeps,
    "dies": dies,
    "dies who keeps the store": dies,
    "fails alone": fails_alone,
    "fails without words": fails_without_words,
    "dies alone": dies_alone,
    "dies before they meet": dies_before_they_meet,
    "stops in a step": stops_in_a_step,
    "stops in a step of copies": stops_in_a_step_of_copies,
    "stops in a save": stops_in_a_save,
    "stops in a load": stops_in_a_load,
}
