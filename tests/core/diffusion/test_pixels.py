"""Pixels as tokens: rows of patches, and in a patch colour by colour, row by row."""

from __future__ import annotations

import pytest
import torch

from lens_core.diffusion.autoencoders.pixels.autoencoder import Pixels
from lens_core.diffusion.autoencoders.pixels.config import PixelsConfig


@pytest.fixture
def pixels():
    return Pixels(PixelsConfig(patch=2))


def test_order_of_tokens_and_channels(pixels):
    """Every pixel is numbered by image, colour, row and column."""
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    tokens = pixels.encode(images)
    assert tokens.shape == (2, 6, 12)
    for b, (row, column), (colour, y, x) in (
        (0, (0, 0), (0, 0, 0)),
        (0, (0, 2), (1, 0, 1)),
        (0, (1, 0), (2, 1, 0)),
        (1, (1, 2), (2, 1, 1)),
    ):
        assert tokens[b, row * 3 + column, colour * 4 + y * 2 + x] == images[b, colour, row * 2 + y, column * 2 + x]


def test_round_trip_is_exact(pixels):
    images = torch.rand(2, 3, 4, 6) * 2 - 1
    assert torch.equal(pixels.decode(pixels.encode(images), (2, 3)), images)


def test_grid_decides_the_shape(pixels):
    tokens = torch.rand(1, 6, 12)
    assert pixels.decode(tokens, (3, 2)).shape == (1, 3, 6, 4)
    assert pixels.decode(tokens, (1, 6)).shape == (1, 3, 2, 12)


def test_sizes():
    pixels = Pixels(PixelsConfig(patch=8))
    assert (pixels.stride, pixels.channels) == (8, 192)


@pytest.mark.parametrize(("height", "width"), [(5, 4), (4, 5), (3, 3)])
def test_odd_sizes_are_refused(pixels, height, width):
    with pytest.raises(ValueError, match=f"{width}x{height} is not a multiple of the patch, 2"):
        pixels.encode(torch.zeros(1, 3, height, width))


def test_images_that_are_not_contiguous(pixels):
    images = torch.rand(1, 4, 6, 3).permute(0, 3, 1, 2)
    assert torch.equal(pixels.encode(images), pixels.encode(images.contiguous()))
