"""The multistep sampler: exact where its assumption holds, second order where it does not, and one call a step."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.integrate import solve_ivp

from lens_core.diffusion.samplers import follow
from lens_core.diffusion.samplers.flow_euler.config import FlowEulerConfig
from lens_core.diffusion.samplers.flow_euler.sampler import FlowEuler
from lens_core.diffusion.samplers.flow_multistep.config import FlowMultistepConfig
from lens_core.diffusion.samplers.flow_multistep.sampler import FlowMultistep


def multistep(**options):
    return FlowMultistep(FlowMultistepConfig(**options))


class Mixture:
    """Data of three Gaussians on a line, whose velocity field is known exactly."""

    mean = torch.tensor([-1.5, 0.2, 1.0], dtype=torch.float64)

    def __init__(self, variance=(0.05, 0.3, 0.02)):
        self.variance = torch.tensor(variance, dtype=torch.float64)
        self.calls = 0

    def __call__(self, x_N1, t):
        """E[noise - image | x], for x = (1 - t)·image + t·noise."""
        self.calls += 1
        total = (1 - t) ** 2 * self.variance + t**2
        rest = x_N1 - (1 - t) * self.mean
        weight = (-(rest**2) / (2 * total) - total.log() / 2).softmax(-1)
        velocity = t / total * rest - (self.mean + (1 - t) * self.variance / total * rest)
        return (weight * velocity).sum(-1, keepdim=True)


def noises():
    return torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)[:, None]


def exact(field):
    """The mixture's flow, solved by another hand to 1e-10."""
    solved = solve_ivp(
        lambda t, x: field(torch.from_numpy(x)[:, None], torch.tensor(t))[:, 0].numpy(),
        (1.0, 0.0),
        noises()[:, 0].numpy(),
        rtol=1e-10,
        atol=1e-12,
    )
    return torch.from_numpy(solved.y[:, -1:])


def error(sampler, field=None):
    field = field or Mixture()
    return float((follow(sampler, field, noises(), sampler.times(1024)) - exact(field)).abs().max())


def test_solves_its_own_assumption_exactly():
    """Where D is a line in t, a step is the exact solution of dx/dt = (x - D(t)) / t."""
    start, slope, x = 0.7, -1.3, 0.4
    t_before, t, t_next = 0.9, 0.6, 0.25
    solved = solve_ivp(lambda s, y: (y - (start + slope * s)) / s, (t, t_next), [x], rtol=1e-11, atol=1e-12)
    before, now, after = (torch.tensor(value, dtype=torch.float64) for value in (t_before, t, t_next))
    velocity = torch.tensor((x - (start + slope * t)) / t, dtype=torch.float64)
    stepped = multistep().step(
        torch.tensor(x, dtype=torch.float64), velocity, now, after, (start + slope * before, before)
    )
    assert float(stepped) == pytest.approx(solved.y[0, -1], abs=1e-9)


def test_clean_is_the_image_that_the_velocity_promises():
    image, noise, t = torch.tensor([2.0]), torch.tensor([-3.0]), torch.tensor(0.25)
    x = (1 - t) * image + t * noise
    assert torch.equal(multistep().clean(x, noise - image, t), image)


@pytest.mark.parametrize("shift", ["none", 1.0])
def test_is_of_second_order(shift):
    """The error falls as steps^-2·log(steps): that is a little slower than 2 per doubling, and Euler's is 1."""
    smooth = Mixture((0.3, 0.5, 0.4))
    coarse, fine = (error(multistep(steps=steps, shift=shift), smooth) for steps in (40, 640))
    assert math.log(coarse / fine, 16) > 1.6
    euler_coarse, euler_fine = (
        error(FlowEuler(FlowEulerConfig(steps=steps, shift=shift)), smooth) for steps in (40, 640)
    )
    assert math.log(euler_coarse / euler_fine, 16) < 1.2
    assert fine < euler_fine / 10


@pytest.mark.parametrize("shift", ["none", "released", 1.0])
@pytest.mark.parametrize("steps", [4, 8, 12, 20, 50])
def test_is_nearer_than_euler_at_the_same_price(steps, shift):
    assert error(multistep(steps=steps, shift=shift)) < error(FlowEuler(FlowEulerConfig(steps=steps, shift=shift)))


def test_one_call_a_step_and_no_memory_between_samples():
    sampler, field = multistep(steps=7), Mixture()
    first = follow(sampler, field, noises(), sampler.times(1))
    assert field.calls == 7
    assert torch.equal(follow(sampler, field, noises(), sampler.times(1)), first)


def test_first_and_last_steps_are_eulers():
    sampler = multistep(steps=1)
    x, v, t, t_next = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor(0.5), torch.tensor(0.0)
    before = (torch.tensor([9.0]), torch.tensor(0.8))
    assert sampler.step(x, v, t, t_next).tolist() == [0.0]
    assert sampler.step(x, v, t, t_next, before).tolist() == [0.0]
    assert (
        sampler.step(x, v, t, torch.tensor(0.1), before).tolist() != sampler.step(x, v, t, torch.tensor(0.1)).tolist()
    )


def test_steps_by_hand_are_sample():
    """What a server does that mixes requests: it keeps `before` for each of them."""
    sampler, field = multistep(steps=6, shift=1.0), Mixture()
    x, grid, before = noises(), sampler.times(1), None
    for t, t_next in itertools.pairwise(grid):
        v = field(x, t)
        x, before = sampler.step(x, v, t, t_next, before), (sampler.clean(x, v, t), t)
    assert torch.equal(x, follow(sampler, field, noises(), grid))


def test_each_token_may_have_its_own_grid():
    sampler = multistep(steps=6, shift="continuous")
    grids = [sampler.times(n) for n in (64, 256, 1024, 2304, 4096, 4300, 4301, 8100, 16384)]
    x_N1 = noises()
    together = follow(sampler, Mixture(), x_N1, torch.stack(grids, dim=1)[..., None])
    alone = [follow(sampler, Mixture(), x_N1[i : i + 1], grid) for i, grid in enumerate(grids)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_tokens_that_stand_still_do_not_disturb():
    """A grid that repeats a time, or has arrived, moves nothing and divides by nothing."""
    sampler = multistep()
    grid = torch.tensor([1.0, 0.6, 0.6, 0.3, 0.0, 0.0], dtype=torch.float64)
    plain = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    out = follow(sampler, Mixture(), noises(), grid)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out, follow(sampler, Mixture(), noises(), plain), rtol=0, atol=0.2)


def test_float32_is_near_float64_at_a_thousand_steps():
    """Neither the small bend of a short step nor the last time drowns in rounding."""
    for shift in ("none", "released", 6.0):
        sampler = multistep(steps=1000, shift=shift)
        grid = sampler.times(1024)
        single = follow(sampler, lambda x, t: Mixture()(x.double(), t).float(), noises().float(), grid)
        torch.testing.assert_close(single.double(), follow(sampler, Mixture(), noises(), grid), rtol=0, atol=2e-4)


def test_state_keeps_its_dtype_under_a_coarse_network():
    sampler = multistep(steps=5)
    for grid in (sampler.times(1), sampler.times(1)[:, None, None].expand(-1, 9, 1)):
        out = follow(sampler, lambda x, t: Mixture()(x.double(), t).bfloat16(), noises().float(), grid)
        assert out.dtype == torch.float32
        assert float((out - follow(sampler, Mixture(), noises(), grid)).abs().max()) < 0.05
