"""What an output means: a velocity, or an image."""

from __future__ import annotations

import pytest
import torch

from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion.prediction import target_velocity, to_velocity


@pytest.fixture
def world():
    """Images, noise, their mixtures and times, and the velocity that leads from one to the other."""
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([1.0, 0.9, 0.5, 0.2, 0.06, 0.05], dtype=torch.float64)[:, None]
    return image, (1 - t) * image + t * noise, t, noise - image


def test_velocity_is_handed_through(world):
    _, x, t, velocity = world
    assert to_velocity(PredictionConfig(type="velocity"), velocity, x, t) is velocity


def test_right_image_gives_the_right_velocity(world):
    image, x, t, velocity = world
    torch.testing.assert_close(to_velocity(PredictionConfig(type="x"), image, x, t), velocity, rtol=0, atol=1e-12)


def test_small_times_are_divided_by_the_floor(world):
    image, x, _, _ = world
    t = torch.tensor([[0.01], [0.0], [0.1], [0.1], [0.2], [1.0]], dtype=torch.float64)
    divided_by = torch.tensor([[0.1], [0.1], [0.1], [0.1], [0.2], [1.0]], dtype=torch.float64)
    velocity = to_velocity(PredictionConfig(type="x", t_floor=0.1), image, x, t)
    torch.testing.assert_close(velocity, (x - image) / divided_by)


@pytest.mark.parametrize("prediction", [PredictionConfig(type="velocity"), PredictionConfig(type="x", t_floor=0.3)])
def test_target_is_what_the_perfect_output_gives(world, prediction):
    """Below the floor of 0.3 too, where the velocity itself is out of reach."""
    image, x, t, velocity = world
    perfect = velocity if prediction.type == "velocity" else image
    target = target_velocity(prediction, velocity, t)
    torch.testing.assert_close(target, to_velocity(prediction, perfect, x, t), rtol=0, atol=1e-12)
    below = (t < 0.3) & (prediction.type == "x")
    assert torch.equal((target != velocity).any(-1, keepdim=True), below)
