"""Tiles: they cover the image, their shares sum to one, and a decoder that looks no farther than the margin agrees."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lens_core.diffusion.autoencoders.tiling import blend_weights, decode_in_tiles, tile_starts

SIDES = st.integers(1, 400)
TILES = st.integers(4, 130)


class Decoder(nn.Module):
    """Convolutions and an upsampling by `scale`; a pixel depends on cells at most `convolutions` away."""

    def __init__(self, *, convolutions=1, scale=4):
        super().__init__()
        torch.manual_seed(0)
        self.convolutions = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(convolutions)))
        self.upsample = nn.Upsample(scale_factor=scale, mode="nearest")
        self.seen = []

    def forward(self, cells_BChw):
        self.seen.append(tuple(cells_BChw.shape))
        return self.upsample(self.convolutions(cells_BChw).tanh())


@settings(deadline=None)
@given(SIDES, TILES)
def test_tiles_cover_the_side_and_overlap_by_a_quarter(size, tile):
    starts = tile_starts(size, tile)
    assert starts[0] == 0
    if size <= tile:
        assert starts == [0]
        return
    assert starts[-1] == size - tile
    steps = [after - before for before, after in itertools.pairwise(starts)]
    assert min(steps) > 0
    assert max(steps) <= tile - tile // 4
    assert len(starts) == 1 + -(-(size - tile) // (tile - tile // 4)), "no tile more than needed"


@settings(deadline=None)
@given(SIDES, TILES, st.integers(1, 4))
def test_weights_sum_to_one_and_stay_inside_their_tile(size, tile, scale):
    weights_IP = blend_weights(size, tile, scale)
    starts = tile_starts(size, tile)
    assert weights_IP.shape == (len(starts), size * scale)
    torch.testing.assert_close(weights_IP.sum(0), torch.ones(size * scale), rtol=0, atol=1e-6)
    assert (weights_IP >= 0).all()
    margin = tile // 4 / 4
    centre_P = (torch.arange(size * scale) + 0.5) / scale
    for i, start in enumerate(starts):
        inside = torch.ones(size * scale, dtype=torch.bool)
        if i > 0:
            inside &= centre_P > start + margin - 1e-4
        if i + 1 < len(starts):
            inside &= centre_P < start + tile - margin + 1e-4
        assert (weights_IP[i][~inside] == 0).all()


def test_weights_are_linear_between_two_tiles():
    """Tiles of 16 at 0 and 12 overlap in 12…16: the first and last quarter are thrown away, the rest is a ramp."""
    first, second = blend_weights(28, 16, 2)
    assert tile_starts(28, 16) == [0, 12]
    assert second[24:32].tolist() == pytest.approx([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])
    assert first[24:32].tolist() == pytest.approx([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0])


@pytest.mark.parametrize(("h", "w"), [(17, 16), (16, 40), (37, 53), (33, 64), (29, 5)])
def test_equals_the_whole_where_the_margin_holds_the_context(h, w):
    """Tiles of 16 have margins of one cell, as far as one convolution looks."""
    decoder = Decoder(convolutions=1)
    cells = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(decode_in_tiles(decoder, cells, 16), decoder(cells), rtol=1e-5, atol=1e-6)


def test_is_near_the_whole_where_it_does_not():
    """Three convolutions look farther than a margin of one, so the test above is one that can fail."""
    decoder = Decoder(convolutions=3)
    cells = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    error = (decode_in_tiles(decoder, cells, 16) - decoder(cells)).abs()
    assert 1e-3 < error.max() < 0.5
    assert error.median() < 1e-6


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(4, 30))
def test_a_decoder_without_context_is_exact_at_any_size(h, w, tile):
    cells = torch.randn(1, 2, h, w, generator=torch.Generator().manual_seed(h * 61 + w))

    def decode(part):
        return part.repeat_interleave(3, -2).repeat_interleave(3, -1)

    torch.testing.assert_close(decode_in_tiles(decode, cells, tile), decode(cells), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (16, 16), (3, 16)])
def test_one_tile_is_the_identity(h, w):
    decoder = Decoder(convolutions=3)
    cells = torch.randn(1, 3, h, w)
    assert torch.equal(decode_in_tiles(decoder, cells, 16), decoder(cells))
    assert decoder.seen == [(1, 3, h, w)] * 2


@pytest.mark.parametrize(("h", "w", "count"), [(17, 100, 2 * 8), (100, 9, 8), (16, 17, 2)])
def test_the_decoder_never_sees_more_than_a_tile(h, w, count):
    decoder = Decoder()
    decode_in_tiles(decoder, torch.randn(1, 3, h, w), 16)
    assert decoder.seen == [(1, 3, min(h, 16), min(w, 16))] * count


def test_gradients_pass():
    cells = torch.randn(1, 3, 20, 20, requires_grad=True)
    decode_in_tiles(Decoder(), cells, 8).sum().backward()
    assert cells.grad.abs().min() > 0
