"""The objective: what a sample is trained on depends on (seed, epoch, key) alone, and is what the sampler undoes."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion.counter_noise import noise
from lens_core.diffusion.prediction import target_velocity, to_velocity
from lens_core.diffusion.samplers import follow
from lens_core.diffusion.samplers.flow_euler.config import FlowEulerConfig
from lens_core.diffusion.samplers.flow_euler.sampler import FlowEuler
from lens_core.diffusion.samplers.time_grid import trained_mu
from lens_train.loop.metrics import quartile
from lens_train.objective.config import LogitNormalTimes, ModeTimes, ObjectiveConfig, UniformTimes
from lens_train.objective.flow import sample_losses, targets
from lens_train.objective.times import times_of

SEED = 11


def clean_tokens(count, length=16, channels=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, channels, generator=generator) for _ in range(count)]


def key(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def many(config, count, *, length=1, channels=1, epoch=0):
    """Targets of that many samples, each with clean tokens of its own."""
    turns = [(epoch, key(number)) for number in range(count)]
    return targets(config, clean_tokens(count, length, channels), turns, SEED)


def logits(goal):
    t = goal.timestep_G.double().numpy()
    return np.log(t) - np.log1p(-t)


def test_targets_are_the_closed_form():
    tokens = [*clean_tokens(3), *clean_tokens(2, length=7, seed=1)]
    turns = [(number % 2, key(number)) for number in range(5)]
    goal = targets(ObjectiveConfig(), tokens, turns, SEED)
    lengths = [len(one) for one in tokens]
    parts = zip(turns, tokens, goal.x_NC.split(lengths), goal.velocity_NC.split(lengths), strict=True)
    for (turn, clean, x, v), t in zip(parts, goal.timestep_G.double(), strict=True):
        eps = noise(SEED, turn, clean.shape)
        torch.testing.assert_close(v, eps - clean)
        torch.testing.assert_close(x.double(), (1 - t) * clean.double() + t * eps.double(), rtol=1e-5, atol=1e-6)
        assert 0 < t < 1
    assert goal.x_NC.dtype == goal.velocity_NC.dtype == torch.float32


def test_neighbours_and_position_change_nothing():
    tokens = clean_tokens(6)
    turns = [(number % 2, key(number)) for number in range(6)]
    together = targets(ObjectiveConfig(), tokens, turns, SEED)
    for order in ([3], [5, 3], [3, 0, 1], [1, 4, 3, 2], [5, 4, 3, 2, 1, 0]):
        other = targets(ObjectiveConfig(), [tokens[i] for i in order], [turns[i] for i in order], SEED)
        place = order.index(3)
        assert torch.equal(other.x_NC.view(-1, 16, 12)[place], together.x_NC.view(-1, 16, 12)[3])
        assert torch.equal(other.velocity_NC.view(-1, 16, 12)[place], together.velocity_NC.view(-1, 16, 12)[3])
        assert torch.equal(other.timestep_G[place], together.timestep_G[3])


def test_seed_epoch_and_key_matter():
    (clean,) = clean_tokens(1)

    def of(seed=SEED, epoch=0, number=1):
        return targets(ObjectiveConfig(), [clean], [(epoch, key(number))], seed)

    assert torch.equal(of().x_NC, of().x_NC)
    for other in (of(seed=SEED + 1), of(epoch=1), of(number=2)):
        assert not torch.equal(other.velocity_NC, of().velocity_NC)
        assert not torch.equal(other.timestep_G, of().timestep_G)


@pytest.mark.parametrize(
    ("times", "length", "mean"),
    [
        (LogitNormalTimes(), 1, 0.0),
        (LogitNormalTimes(mean=0.7, std=0.5), 1, 0.7),
        (LogitNormalTimes(mean=-1.0, std=2.0), 1, -1.0),
        (LogitNormalTimes(std=0.5, shift="trained"), 1024, 1.06),
        (LogitNormalTimes(mean=0.2, std=0.5, shift=0.5), 16, 0.7),
    ],
)
def test_times_are_logit_normal(times, length, mean):
    goal = many(ObjectiveConfig(times=times), 1500, length=length)
    assert scipy.stats.kstest(logits(goal), "norm", args=(mean, times.std)).pvalue > 1e-4


def test_times_are_uniform():
    goal = many(ObjectiveConfig(times=UniformTimes()), 3000)
    assert scipy.stats.kstest(goal.timestep_G.numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_times_have_the_density_of_their_formula(scale):
    """Its quantile function is f(u) = 1 - u - s·(cos²(πu/2) - 1 + u); shares follow from the inverse of f."""
    u = np.linspace(0, 1, 100_001)
    f = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    assert (np.diff(f) <= 1e-12).all()  # so it has an inverse
    times = many(ObjectiveConfig(times=ModeTimes(scale=scale)), 4000).timestep_G.numpy()
    edges = np.linspace(0, 1, 11)
    shares = np.diff(1 - np.interp(edges, f[::-1], u[::-1]))
    counts, _ = np.histogram(times, edges)
    assert scipy.stats.chisquare(counts, 4000 * shares).pvalue > 1e-4


def test_each_sample_of_a_mixed_batch_leans_as_far_as_its_own_resolution():
    tokens = [torch.zeros(length, 1) for length in (256, 4096)]
    config = ObjectiveConfig(times=LogitNormalTimes(shift="trained"))
    both = targets(config, tokens, [(0, key(1)), (0, key(1))], SEED)
    small, large = logits(both)
    assert large - small == pytest.approx(0.3, abs=1e-4)  # the same lot, another lean


@pytest.mark.parametrize("shift", ["none", "trained", 1.5, -0.5])
@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_even_lots_give_the_samplers_grid(shift, tokens):
    """Training and sampling lean by one rule: what one calls a shift is what the other calls it."""
    steps = 20
    grid = FlowEuler(FlowEulerConfig(steps=steps, shift=shift)).times(tokens)[:-1]
    lots = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    times = times_of(UniformTimes(shift=shift), lots, [tokens] * steps)
    torch.testing.assert_close(times, grid, rtol=1e-6, atol=1e-7)


def test_time_and_noise_are_independent():
    goal = many(ObjectiveConfig(), 4000, length=1, channels=2)
    eps = (goal.velocity_NC + torch.cat(clean_tokens(4000, 1, 2))).numpy()
    for first, second in ((logits(goal), eps[:, 0]), (logits(goal), eps[:, 1]), (eps[:, 0], eps[:, 1])):
        assert scipy.stats.pearsonr(first, second).pvalue > 1e-4
        assert scipy.stats.pearsonr(first**2, second**2).pvalue > 1e-4


@pytest.mark.parametrize(("tokens", "mean"), [(256, 1.0), (1024, 1.06), (2304, 1.16), (4096, 1.3), (4232, 1.3106)])
def test_the_trained_lean_is_the_papers(tokens, mean):
    assert trained_mu(tokens) == pytest.approx(mean, abs=1e-4)


def test_sample_losses_are_means_per_sample():
    rng = np.random.default_rng(0)
    lengths = [1, 16, 5]
    got, wanted = rng.normal(size=(2, sum(lengths), 7)).astype(np.float32)
    losses = sample_losses(torch.from_numpy(got), torch.from_numpy(wanted), lengths)
    edges = np.cumsum([0, *lengths])
    expected = [((got[a:b] - wanted[a:b]) ** 2).mean() for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)


def test_sample_losses_are_in_float32_whatever_the_output_is():
    got = torch.full((2, 3), 300.0, dtype=torch.float16)
    losses = sample_losses(got, torch.zeros(2, 3), [2])
    assert losses.dtype == torch.float32
    assert losses.item() == 90_000  # beyond float16


def perfect_output(prediction, clean_NC, velocity_NC):
    return clean_NC if prediction.type == "x" else velocity_NC


@pytest.mark.parametrize("kind", ["x", "velocity"])
def test_the_perfect_predictor_has_no_loss(kind):
    prediction = PredictionConfig(type=kind)
    tokens = clean_tokens(200)
    # Some times lie below the floor, where x is divided by the floor instead.
    config = ObjectiveConfig(times=LogitNormalTimes(mean=-1.0))
    goal = targets(config, tokens, [(0, key(number)) for number in range(200)], SEED)
    assert goal.timestep_G.min() < prediction.t_floor
    output_NC = perfect_output(prediction, torch.cat(tokens), goal.velocity_NC)
    t_N1 = goal.timestep_G.repeat_interleave(16)[:, None]
    velocity_NC = to_velocity(prediction, output_NC, goal.x_NC, t_N1)
    losses_G = sample_losses(velocity_NC, target_velocity(prediction, goal.velocity_NC, t_N1), [16] * 200)
    assert losses_G.max() < 1e-9


def test_an_error_in_x_is_the_same_error_in_the_velocity_divided_by_time():
    (clean,), (error,) = clean_tokens(1), clean_tokens(1, seed=5)
    goal = targets(ObjectiveConfig(times=LogitNormalTimes(mean=0.5)), [clean], [(0, key(1))], SEED)
    t = goal.timestep_G[:, None].expand(16, 1)
    velocity = to_velocity(PredictionConfig(type="x"), clean - error, goal.x_NC, t)
    torch.testing.assert_close(velocity - goal.velocity_NC, error / t, rtol=1e-4, atol=1e-5)


def test_near_time_zero_the_velocity_stays_bounded():
    (clean,), (eps,) = clean_tokens(1), clean_tokens(1, seed=5)
    prediction = PredictionConfig(type="x", t_floor=0.05)
    for t in (0.0, 1e-6, 0.01, 0.049):
        velocity = to_velocity(prediction, clean, (1 - t) * clean + t * eps, torch.full((16, 1), t))
        assert (velocity.abs() <= (eps - clean).abs() + 1e-4).all()


@pytest.mark.parametrize("shift", ["none", "released", 1.0])
@pytest.mark.parametrize("kind", ["x", "velocity"])
def test_the_sampler_undoes_what_training_does(kind, shift):
    (clean,) = clean_tokens(1)
    prediction = PredictionConfig(type=kind)
    eps = noise(SEED, (0, key(1)), clean.shape)
    goal = targets(ObjectiveConfig(), [clean], [(0, key(1))], SEED)
    sampler = FlowEuler(FlowEulerConfig(steps=20, shift=shift))
    times = sampler.times(len(clean))
    on_the_way = []

    def denoiser(x, t):
        on_the_way.append((float(t), x))
        output = clean if kind == "x" else (x - clean) / t
        return to_velocity(prediction, output, x, t.expand(16, 1))

    landed = follow(sampler, denoiser, eps, times)
    torch.testing.assert_close(landed, clean, rtol=1e-4, atol=1e-4)
    # At each time the sampler stands where training would have put the sample.
    for t, x in on_the_way:
        torch.testing.assert_close(x, clean + t * goal.velocity_NC, rtol=1e-4, atol=1e-4)
    assert on_the_way[0][0] == 1.0


def test_quarters():
    assert [quartile(t) for t in (0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 0.999)] == [0, 0, 1, 2, 2, 3, 3]
    assert quartile(1.0) == 3
    assert quartile(math.nextafter(1.0, 0.0)) == 3
