"""The average of the weights against the same recurrence written out."""

from __future__ import annotations

import torch
from torch import nn

from lens_train.optim.ema import Ema


def modules():
    torch.manual_seed(0)
    one, two = nn.Linear(3, 4), nn.Linear(4, 2)
    two.bias.requires_grad_(False)
    return {"one": one, "two": two}


def walk(ema, owners, steps):
    """Move the weights by chance; what they were after each step."""
    seen = []
    for step in range(steps):
        for parameter in (p for owner in owners.values() for p in owner.parameters() if p.requires_grad):
            parameter.data.add_(torch.randn(parameter.shape))
        ema.update(step)
        seen.append(owners["one"].weight.detach().double().clone())
    return seen


def test_follows_its_recurrence():
    owners = modules()
    expected = owners["one"].weight.detach().double().clone()
    ema = Ema(owners, 0.8)
    for step, weight in enumerate(walk(ema, owners, 60)):
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(ema.averages["one/weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_names_what_is_trained_and_nothing_else():
    assert list(Ema(modules(), 0.9).averages) == ["one/weight", "one/bias", "two/weight"]


def test_swaps_in_and_out_even_when_something_fails():
    owners = modules()
    ema = Ema(owners, 0.9)
    walk(ema, owners, 3)
    before = {name: p.detach().clone() for name, p in owners["one"].named_parameters()}
    try:
        with ema.swapped():
            assert torch.equal(owners["one"].weight, ema.averages["one/weight"])
            assert not torch.equal(owners["one"].weight, before["weight"])
            raise KeyError
    except KeyError:
        pass
    assert all(torch.equal(p, before[name]) for name, p in owners["one"].named_parameters())


def test_frozen_weights_stay_out_of_it():
    owners = modules()
    ema = Ema(owners, 0.9)
    kept = owners["two"].bias.detach().clone()
    walk(ema, owners, 2)
    with ema.swapped():
        assert torch.equal(owners["two"].bias, kept)
