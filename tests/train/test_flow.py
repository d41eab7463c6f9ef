"""The objective: what a sample is trained on depends on (seed, epoch, key) alone, and is what the sampler undoes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion.counter_noise import noise
from lens_core.diffusion.prediction import target_velocity, to_velocity
from lens_core.diffusion.samplers.flow_euler.config import FlowEulerConfig
from lens_core.diffusion.samplers.flow_euler.sampler import FlowEuler
from lens_train.data.captioned import Sample
from lens_train.objective.config import ObjectiveConfig
from lens_train.objective.flow import quartile, resolution_mean, sample_losses, targets

SEED = 11


def sample(key, *, epoch=0, number=0, caption="a red circle"):
    return Sample(number=number, key=key, caption=caption, epoch=epoch)


def clean_tokens(count, length=16, channels=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, channels, generator=generator) for _ in range(count)]


def many(config, count, *, length=1, channels=1, epoch=0):
    """Targets of that many samples, each with clean tokens of its own."""
    samples = [sample(f"{number:064x}", epoch=epoch) for number in range(count)]
    return targets(config, clean_tokens(count, length, channels), samples, SEED)


def logits(goal):
    t = goal.timestep_G.double().numpy()
    return np.log(t) - np.log1p(-t)


def test_targets_are_the_closed_form():
    tokens = [*clean_tokens(3), *clean_tokens(2, length=7, seed=1)]
    samples = [sample(f"key-{number}", epoch=number % 2) for number in range(5)]
    goal = targets(ObjectiveConfig(), tokens, samples, SEED)
    lengths = [len(one) for one in tokens]
    parts = zip(samples, tokens, goal.x_NC.split(lengths), goal.velocity_NC.split(lengths), strict=True)
    for (one, clean, x, v), t in zip(parts, goal.timestep_G.double(), strict=True):
        eps = noise(SEED, (one.epoch, one.key), clean.shape)
        torch.testing.assert_close(v, eps - clean)
        torch.testing.assert_close(x.double(), (1 - t) * clean.double() + t * eps.double(), rtol=1e-5, atol=1e-6)
        assert 0 < t < 1
    assert goal.x_NC.dtype == goal.velocity_NC.dtype == torch.float32


def test_neighbours_and_position_change_nothing():
    tokens = clean_tokens(6)
    samples = [sample(f"key-{number}") for number in range(6)]
    config = ObjectiveConfig(caption_dropout=0.5)
    together = targets(config, tokens, samples, SEED)
    for order in ([3], [5, 3], [3, 0, 1], [1, 4, 3, 2], [5, 4, 3, 2, 1, 0]):
        other = targets(config, [tokens[i] for i in order], [samples[i] for i in order], SEED)
        place = order.index(3)
        assert torch.equal(other.x_NC.view(-1, 16, 12)[place], together.x_NC.view(-1, 16, 12)[3])
        assert torch.equal(other.velocity_NC.view(-1, 16, 12)[place], together.velocity_NC.view(-1, 16, 12)[3])
        assert torch.equal(other.timestep_G[place], together.timestep_G[3])
        assert other.captions[place] == together.captions[3]


def test_only_seed_epoch_and_key_matter():
    (clean,) = clean_tokens(1)
    config = ObjectiveConfig(caption_dropout=0)

    def of(seed=SEED, **changes):
        return targets(config, [clean], [sample(**{"key": "k", **changes})], seed)

    same = of(number=7, caption="something else")
    assert torch.equal(same.x_NC, of().x_NC)
    assert same.captions == ["something else"]
    for other in (of(seed=SEED + 1), of(epoch=1), of(key="l")):
        assert not torch.equal(other.velocity_NC, of().velocity_NC)
        assert not torch.equal(other.timestep_G, of().timestep_G)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_captions_are_dropped_as_often_as_asked(share):
    goal = many(ObjectiveConfig(caption_dropout=share), 4000)
    dropped = goal.captions.count("")
    assert scipy.stats.binomtest(dropped, 4000, share).pvalue > 1e-4
    assert set(goal.captions) == {"", "a red circle"}


def test_no_dropout_drops_nothing():
    assert many(ObjectiveConfig(caption_dropout=0), 500).captions == ["a red circle"] * 500


def test_every_epoch_drops_others():
    config = ObjectiveConfig(caption_dropout=0.5)
    both = zip(many(config, 2000).captions, many(config, 2000, epoch=1).captions, strict=True)
    agree = sum(first == second for first, second in both)
    assert scipy.stats.binomtest(agree, 2000, 0.5).pvalue > 1e-4


@pytest.mark.parametrize(
    ("mean", "std", "length", "expected"),
    [(0.0, 1.0, 1, 0.0), (0.7, 0.5, 1, 0.7), (-1.0, 2.0, 1, -1.0), ("resolution", 0.5, 1024, 1.06)],
)
def test_times_are_logit_normal(mean, std, length, expected):
    goal = many(ObjectiveConfig(timestep_mean=mean, timestep_std=std), 1500, length=length)
    assert scipy.stats.kstest(logits(goal), "norm", args=(expected, std)).pvalue > 1e-4


def test_each_sample_of_a_mixed_batch_has_the_mean_of_its_own_resolution():
    tokens = [torch.zeros(length, 1) for length in (256, 4096)]
    both = targets(ObjectiveConfig(timestep_mean="resolution"), tokens, [sample("k"), sample("k")], SEED)
    small, large = logits(both)
    assert large - small == pytest.approx(0.3, abs=1e-4)  # the same lot, another mean


def test_time_noise_and_dropout_are_independent():
    goal = many(ObjectiveConfig(caption_dropout=0.5), 4000, length=1, channels=2)
    clean = torch.cat(clean_tokens(4000, 1, 2))
    eps = (goal.velocity_NC + clean).numpy()
    dropped = np.array([caption == "" for caption in goal.captions])
    for first, second in ((logits(goal), eps[:, 0]), (logits(goal), eps[:, 1]), (eps[:, 0], eps[:, 1])):
        assert scipy.stats.pearsonr(first, second).pvalue > 1e-4
        assert scipy.stats.pearsonr(first**2, second**2).pvalue > 1e-4
    assert scipy.stats.ks_2samp(logits(goal)[dropped], logits(goal)[~dropped]).pvalue > 1e-4
    assert scipy.stats.ks_2samp(eps[dropped, 0], eps[~dropped, 0]).pvalue > 1e-4


@pytest.mark.parametrize(("tokens", "mean"), [(256, 1.0), (1024, 1.06), (2304, 1.16), (4096, 1.3), (4232, 1.3106)])
def test_resolution_mean_is_the_papers(tokens, mean):
    assert resolution_mean(tokens) == pytest.approx(mean, abs=1e-4)


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
    config = ObjectiveConfig(timestep_mean=-1.0)
    goal = targets(config, tokens, [sample(str(number)) for number in range(200)], SEED)
    assert goal.timestep_G.min() < prediction.t_floor
    output_NC = perfect_output(prediction, torch.cat(tokens), goal.velocity_NC)
    t_N1 = goal.timestep_G.repeat_interleave(16)[:, None]
    velocity_NC = to_velocity(prediction, output_NC, goal.x_NC, t_N1)
    losses_G = sample_losses(velocity_NC, target_velocity(prediction, goal.velocity_NC, t_N1), [16] * 200)
    assert losses_G.max() < 1e-9


def test_an_error_in_x_is_the_same_error_in_the_velocity_divided_by_time():
    (clean,), (error,) = clean_tokens(1), clean_tokens(1, seed=5)
    goal = targets(ObjectiveConfig(timestep_mean=0.5), [clean], [sample("k")], SEED)
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
    eps = noise(SEED, (0, "k"), clean.shape)
    goal = targets(ObjectiveConfig(), [clean], [sample("k")], SEED)
    sampler = FlowEuler(FlowEulerConfig(steps=20, shift=shift))
    times = sampler.times(len(clean))
    on_the_way = []

    def denoiser(x, t):
        on_the_way.append((float(t), x))
        output = clean if kind == "x" else (x - clean) / t
        return to_velocity(prediction, output, x, t.expand(16, 1))

    landed = sampler.sample(denoiser, eps, times)
    torch.testing.assert_close(landed, clean, rtol=1e-4, atol=1e-4)
    # At each time the sampler stands where training would have put the sample.
    for t, x in on_the_way:
        torch.testing.assert_close(x, clean + t * goal.velocity_NC, rtol=1e-4, atol=1e-4)
    assert on_the_way[0][0] == 1.0


def test_quarters():
    assert [quartile(t) for t in (0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 0.999)] == [0, 0, 1, 2, 2, 3, 3]
    assert quartile(1.0) == 3
    assert quartile(math.nextafter(1.0, 0.0)) == 3
