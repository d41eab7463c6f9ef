"""A hundred steps of each optimiser leave as many objects as ten do."""

from __future__ import annotations

import gc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from lens_train.parallel.world import World
from train.parallel.nano import Run


def alive():
    """How many objects there are, and how many numbers their tensors hold."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return len(kinds), sum(tensor.numel() for tensor in tensors)


def growth(optimizer):
    """How many objects and numbers a hundred steps leave behind; asked in a process that does nothing else."""
    run = Run(World(device=torch.device("cpu")), optimizer=optimizer)
    run.steps(0, 10)
    objects, numbers = alive()
    run.steps(10, 110)
    more_objects, more_numbers = alive()
    return more_objects - objects, more_numbers - numbers


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_leave_nothing_behind(optimizer):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        objects, numbers = pool.submit(growth, optimizer).result()
    assert numbers == 0
    assert objects < 50  # one a step would be a hundred
