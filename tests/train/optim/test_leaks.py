"""A hundred steps of each optimiser leave as many objects as ten do."""

from __future__ import annotations

import gc

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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_leave_nothing_behind(optimizer):
    run = Run(World(device=torch.device("cpu")), optimizer=optimizer)
    run.steps(0, 10)
    objects, numbers = alive()
    run.steps(10, 110)
    more_objects, more_numbers = alive()
    assert more_numbers == numbers
    assert more_objects - objects < 50  # one a step would be a hundred
