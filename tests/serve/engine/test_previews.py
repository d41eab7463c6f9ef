"""Previews show the picture, at the times when something new is to be seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lens_core.diffusion.autoencoders.pixels.autoencoder import Pixels
from lens_core.diffusion.autoencoders.pixels.config import PixelsConfig
from lens_core.diffusion.samplers.flow_euler.config import FlowEulerConfig
from lens_core.diffusion.samplers.time_grid import time_grid
from lens_serve.engine.previews import LinearPreview, Moments

CPU = torch.device("cpu")


@pytest.mark.parametrize("patch", [1, 2, 4, 6])
def test_pixels_are_shown_as_they_are_only_smaller(patch):
    """Means of pixels are linear in pixels, so that here the fit must find the very map."""
    autoencoder = Pixels(PixelsConfig(patch=patch))
    preview = LinearPreview.fit(autoencoder, CPU)
    generator = torch.Generator().manual_seed(3)
    picture = torch.rand(1, 3, 3 * patch, 5 * patch, generator=generator) * 2 - 1
    shown = preview.show(autoencoder.encode(picture)[0], (3, 5))
    wanted = F.adaptive_avg_pool2d(picture, (6, 10))[0]
    assert shown.shape == (6, 10, 3)
    error = torch.from_numpy(shown.copy()).float() - (wanted.permute(1, 2, 0) + 1) * 127.5
    assert error.abs().max() <= 1.5


class Single(torch.Tensor):
    """On a device that has no double precision, as Apple's have not."""

    def double(self):
        raise TypeError("no float64 here")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_a_device_needs_no_double_precision(monkeypatch):
    autoencoder = Pixels(PixelsConfig(patch=2))
    encode = autoencoder.encode
    monkeypatch.setattr(autoencoder, "encode", lambda pixels_BCHW: encode(pixels_BCHW).as_subclass(Single))
    assert LinearPreview.fit(autoencoder, CPU).show(torch.zeros(6, 12), (2, 3)).shape == (4, 6, 3)


class Mixed(Pixels):
    """An autoencoder of 16 by 16 pixels a token, whose channels are the means of 4 by 4 of them, stirred."""

    def __init__(self):
        super().__init__(PixelsConfig(patch=16))
        self.channels = 48
        self.stir = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0))).Q

    def encode(self, pixels_BCHW):
        tokens = Pixels(PixelsConfig(patch=4)).encode(F.avg_pool2d(pixels_BCHW, 4))
        return torch.tanh(0.3 * tokens) @ self.stir  # not quite linear


def test_latents_that_are_nearly_linear_are_nearly_shown():
    autoencoder = Mixed()
    preview = LinearPreview.fit(autoencoder, CPU)
    generator = torch.Generator().manual_seed(4)
    picture = F.interpolate(torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1, (64, 64), mode="bilinear")
    shown = torch.from_numpy(preview.show(autoencoder.encode(picture)[0], (4, 4)).copy()).float()
    wanted = (F.adaptive_avg_pool2d(picture, (8, 8))[0].permute(1, 2, 0) + 1) * 127.5
    assert (shown - wanted).abs().mean() < 3
    assert wanted.std() > 20


def test_values_beyond_the_range_are_clipped():
    preview = LinearPreview(torch.cat([torch.zeros(2, 12), torch.full((1, 12), 9.0)]))
    assert (preview.show(torch.zeros(4, 2), (2, 2)) == 255).all()


def shown_at(count, times):
    moments = Moments(count, times[0])
    return [step for step, time in enumerate(times[1:], 1) if moments.due(time)]


@pytest.mark.parametrize(
    ("count", "steps", "expected"),
    [
        (0, 20, []),
        (1, 20, [10]),
        (2, 3, [1, 2]),
        (2, 20, [7, 14]),
        (3, 4, [1, 2, 3]),
        (3, 2, [1, 2]),
        (2, 1, [1]),
    ],
)
def test_previews_come_at_equal_parts_of_the_noise(count, steps, expected):
    assert shown_at(count, [1 - step / steps for step in range(steps + 1)]) == expected


def test_a_grid_that_leans_to_the_noisy_end_shows_the_later_steps():
    """The released grid of 20 steps at 1024 by 1024: a third of the noise is gone after 13 steps only."""
    times = time_grid(FlowEulerConfig(steps=20, shift="released"), 4096).tolist()
    first, second = shown_at(2, times)
    assert times[first] <= 2 / 3 < times[first - 1]
    assert times[second] <= 1 / 3 < times[second - 1]
    assert first > 7


def test_a_picture_that_begins_with_less_noise_has_moments_of_its_own():
    assert shown_at(2, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]) == [2, 4]


def test_a_step_that_passes_several_moments_shows_one_picture():
    moments = Moments(3, 1.0)
    assert moments.due(0.3)
    assert not moments.due(0.29)
