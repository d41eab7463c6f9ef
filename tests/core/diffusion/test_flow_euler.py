"""Euler's method along the flow: the released time grids, and steps with a time per token."""

from __future__ import annotations

import math

import pytest
import torch

from lens_core.diffusion.samplers.flow_euler.config import FlowEulerConfig
from lens_core.diffusion.samplers.flow_euler.sampler import FlowEuler, released_mu

GRIDS = [(256, 4), (1024, 20), (4096, 4), (4096, 20), (4232, 50), (4300, 20), (4301, 20), (8100, 4), (8100, 20)]


def times(num_tokens, steps, shift):
    return FlowEuler(FlowEulerConfig(steps=steps, shift=shift)).times(num_tokens)


@pytest.mark.parametrize(("num_tokens", "steps"), GRIDS)
def test_grid_is_that_of_the_reference(cases, num_tokens, steps):
    known = cases[f"sigmas.{num_tokens}.{steps}"]
    assert released_mu(num_tokens, steps) == pytest.approx(cases[f"mu.{num_tokens}.{steps}"].item(), abs=1e-14)
    torch.testing.assert_close(times(num_tokens, steps, "released"), known, rtol=2e-7, atol=0)


def test_every_grid_of_the_reference_is_compared(cases):
    assert {name for name in cases if name.startswith("sigmas.")} == {f"sigmas.{n}.{steps}" for n, steps in GRIDS}


@pytest.mark.parametrize(
    ("num_tokens", "steps", "known"),
    [
        (4096, 4, "1 .96738 .90814 .76720 0"),
        (8100, 4, "1 .94913 .86149 .67462 0"),
        (
            4096,
            20,
            "1 .99419 .98781 .98078 .97299 .96431 .95458 .94359 .93109 .91673 .90007 .88052 .85724 .82906 .79425 "
            ".75015 .69248 .61383 .50020 .32160 0",
        ),
    ],
)
def test_known_grids(num_tokens, steps, known):
    assert times(num_tokens, steps, "released").tolist() == pytest.approx([*map(float, known.split())], abs=6e-6)


@pytest.mark.parametrize(
    ("num_tokens", "steps", "mu"),
    [
        (1024, 4, 2.0307),
        (1024, 50, 1.7020),
        (2304, 20, 2.0337),
        (4096, 4, 2.2912),
        (4232, 20, 2.2105),
        (8100, 4, 1.8278),
        (8100, 50, 1.8278),
    ],
)
def test_known_shifts(num_tokens, steps, mu):
    assert released_mu(num_tokens, steps) == pytest.approx(mu, abs=6e-5)


def test_even_grid():
    assert times(64, 4, "none").tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_number_shifts_by_its_exponential():
    """A shift of ln 3 moves t to 3 / (3 + 1/t - 1), whatever the size."""
    for num_tokens in (1, 5000):
        assert times(num_tokens, 4, math.log(3)).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert torch.equal(times(9, 7, 0.0), times(9, 7, "none"))


@pytest.mark.parametrize("shift", ["none", "released", 1.5])
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_grid_falls_from_one_to_zero(shift, steps):
    grid = times(4096, steps, shift)
    assert grid.shape == (steps + 1,)
    assert grid.dtype == torch.float32
    assert (float(grid[0]), float(grid[-1])) == (1, 0)
    assert (grid.diff() < 0).all()


def test_step():
    """x + (t_next - t)·v."""
    sampler = FlowEuler(FlowEulerConfig())
    x, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, -4.0]])
    assert sampler.step(x, v, torch.tensor(0.75), torch.tensor(0.25)).tolist() == [[-4, 4]]


def test_each_token_may_have_its_own_time():
    sampler = FlowEuler(FlowEulerConfig())
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 5, 3, generator=generator)
    t, t_next = torch.rand(2, 5, 1, generator=generator)
    alone = [sampler.step(x[i], v[i], t[i, 0], t_next[i, 0]) for i in range(5)]
    assert torch.equal(sampler.step(x, v, t, t_next), torch.stack(alone))


def test_velocity_is_asked_at_the_beginning_of_each_step():
    sampler = FlowEuler(FlowEulerConfig(steps=4))
    asked = []

    def velocity(x, t):
        asked.append((float(x), float(t)))
        return t

    end = sampler.sample(velocity, torch.tensor(0.0), sampler.times(1))
    assert asked == [(0, 1), (-0.25, 0.75), (-0.4375, 0.5), (-0.5625, 0.25)]
    assert float(end) == -0.625
