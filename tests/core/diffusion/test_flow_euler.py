"""Euler's method along the flow: the released time grids, bit by bit, and steps with a time per token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lens_core.diffusion.samplers import follow
from lens_core.diffusion.samplers.flow_euler.config import FlowEulerConfig
from lens_core.diffusion.samplers.flow_euler.sampler import FlowEuler
from lens_core.diffusion.samplers.time_grid import continuous_mu, released_mu, shifted_times

GRIDS = [(256, 4), (1024, 20), (4096, 4), (4096, 20), (4232, 50), (4300, 20), (4301, 20), (8100, 4), (8100, 20)]


RELEASED_SCHEDULER = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""scheduler_config.json of the released checkpoints."""


def times(num_tokens, steps, shift):
    return FlowEuler(FlowEulerConfig(steps=steps, shift=shift)).times(num_tokens)


@pytest.mark.parametrize(("num_tokens", "steps"), GRIDS)
def test_grid_is_that_of_the_reference(cases, num_tokens, steps):
    known = cases[f"sigmas.{num_tokens}.{steps}"]
    assert released_mu(num_tokens, steps) == pytest.approx(cases[f"mu.{num_tokens}.{steps}"].item(), abs=1e-14)
    assert torch.equal(times(num_tokens, steps, "released"), known)


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


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 20, 28, 50, 101, 1000])
def test_grid_and_steps_are_those_of_diffusers(steps):
    """Bit by bit: the scheduler is what the released pipeline runs on, with mu handed over."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    generator = torch.Generator().manual_seed(steps)
    for num_tokens in (1, 256, 1024, 2304, 3888, 4096, 4300, 4301, 8100):
        scheduler = FlowMatchEulerDiscreteScheduler(**RELEASED_SCHEDULER)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=released_mu(num_tokens, steps))
        grid = times(num_tokens, steps, "released")
        assert torch.equal(grid, scheduler.sigmas)
        x = torch.randn(1, 6, 4, generator=generator)
        theirs = x
        for t, t_next, timestep in zip(grid[:3], grid[1:4], scheduler.timesteps[:3], strict=False):
            velocity = torch.randn(1, 6, 4, generator=generator)
            x = FlowEuler(FlowEulerConfig()).step(x, velocity, t, t_next)
            theirs = scheduler.step(velocity, timestep, theirs, return_dict=False)[0]
            assert torch.equal(x, theirs)


def test_released_rule_is_the_one_of_flux2():
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    for num_tokens in (1, 256, 4299, 4300, 4301, 20000):
        for steps in (1, 4, 20, 50, 200, 1000):
            assert released_mu(num_tokens, steps) == compute_empirical_mu(num_tokens, steps)


def test_turbo_takes_the_four_times_of_the_released_rule(cases):
    assert torch.equal(times(4096, 4, "released"), cases["sigmas.4096.4"])


@pytest.mark.parametrize("steps", [1, 4, 20, 50, 1000])
def test_continuous_rule_is_the_released_one_up_to_its_jump(steps):
    for num_tokens in (1, 1024, 4096, 4299, 4300):
        assert continuous_mu(num_tokens, steps) == released_mu(num_tokens, steps)
        assert torch.equal(times(num_tokens, steps, "continuous"), times(num_tokens, steps, "released"))


@pytest.mark.parametrize("steps", [4, 20, 50])
def test_continuous_rule_has_no_jump_and_hardly_a_bend(steps):
    below, at, above = (continuous_mu(n, steps) for n in (4299, 4300, 4301))
    assert abs(released_mu(4301, steps) - released_mu(4300, steps)) > 0.8
    assert above - at == pytest.approx(at - below, abs=4e-5)
    few, many = 8.73809524e-05, 0.00016927
    assert few < above - at < many, "between the slopes of the released rule's lines"
    rising = [continuous_mu(n, steps) for n in range(256, 70000, 97)]
    assert rising == sorted(rising)


def test_continuous_rule_moves_noise_by_the_square_root_of_the_tokens():
    """Four times the tokens: t / (1 - t) doubles, at every step."""
    small, large = (times(n, 20, "continuous")[1:-1].double() for n in (4300, 17200))
    torch.testing.assert_close(large / (1 - large), 2 * small / (1 - small), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shift", [7.0, -7.0, math.nan, math.inf, "steep"])
def test_senseless_shifts_are_refused(shift):
    with pytest.raises(ValidationError, match="shift"):
        FlowEulerConfig(shift=shift)


@pytest.mark.parametrize("shift", [-6.0, 6.0])
def test_steepest_shifts_repeat_no_time(shift):
    assert (shifted_times(1000, shift).diff() < 0).all()


def test_even_grid():
    assert times(64, 4, "none").tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_number_shifts_by_its_exponential():
    """A shift of ln 3 moves t to 3 / (3 + 1/t - 1), whatever the size."""
    for num_tokens in (1, 5000):
        assert times(num_tokens, 4, math.log(3)).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert torch.equal(times(9, 7, 0.0), times(9, 7, "none"))


@pytest.mark.parametrize("shift", ["none", "released", "continuous", 1.5])
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

    end = follow(sampler, velocity, torch.tensor(0.0), sampler.times(1))
    assert asked == [(0, 1), (-0.25, 0.75), (-0.4375, 0.5), (-0.5625, 0.25)]
    assert float(end) == -0.625


def test_step_keeps_the_precision_of_x():
    """The state stays in float32 while the network speaks bfloat16."""
    x, velocity = torch.tensor([[1.0]]), torch.tensor([[3.0]], dtype=torch.bfloat16)
    for shape in ((), (1, 1)):
        t, t_next = (torch.full(shape, value) for value in (0.7012, 0.6034))
        assert torch.equal(FlowEuler(FlowEulerConfig()).step(x, velocity, t, t_next), x + (t_next - t) * 3.0)


def test_each_token_may_have_its_own_grid():
    sampler = FlowEuler(FlowEulerConfig(steps=5, shift="released"))
    grids = [sampler.times(n) for n in (256, 4096, 8100)]
    times_SN1 = torch.stack(grids, dim=1)[..., None]
    x_NC = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))

    def velocity(x, t):
        return x * t - 0.3

    together = follow(sampler, velocity, x_NC, times_SN1)
    alone = [follow(sampler, velocity, x_NC[i], grid) for i, grid in enumerate(grids)]
    torch.testing.assert_close(together, torch.stack(alone))
