"""A padded pack is the pack, and something nobody asks about."""

from __future__ import annotations

import pytest
import torch

from lens_train.parallel.fixed_size import pad_to
from train.parallel.nano import SAMPLES, denoiser, loss_of, pack, samples


@pytest.fixture
def batch():
    return pack(samples(0, torch.float64))


@pytest.mark.parametrize("more", [(7, 5), (1, 0), (0, 1), (0, 0), (64, 64)])
def test_results_and_gradients_are_those_of_the_pack(batch, more):
    batch, goal = batch
    tokens = len(batch.image)
    padded = pad_to(batch, (tokens + more[0], int(batch.text_offsets[-1]) + more[1]))
    plain, other = denoiser(torch.float64), denoiser(torch.float64)
    expected = plain.forward_ragged(batch)
    found = other.forward_ragged(padded)
    assert len(found) == tokens + more[0]
    torch.testing.assert_close(found[:tokens], expected, rtol=1e-10, atol=1e-10)
    (expected - goal).square().mean().backward()
    (found[:tokens] - goal).square().mean().backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-10, atol=1e-12)


def test_every_pack_has_one_size(batch):
    shapes = set()
    for step in range(3):
        chosen = samples(step, torch.float64)[: step + 1]
        padded = pad_to(pack(chosen)[0], (60, 30))
        shapes.add((padded.image.shape, padded.text[0].shape))
        assert padded.image_offsets[-1] == 60
        assert padded.text_offsets[-1] == 30
        assert len(padded.grids) == step + 2
    assert len(shapes) == 1


def test_a_pack_that_is_too_large_is_refused(batch):
    batch, _ = batch
    with pytest.raises(ValueError, match="are more than 10 and 99"):
        pad_to(batch, (10, 99))


def test_the_loss_of_a_step_is_that_of_its_samples_alone():
    chosen = samples(3, torch.float64)
    whole = loss_of(denoiser(torch.float64), *pack(chosen))
    alone = [loss_of(denoiser(torch.float64), *pack([one])) for one in chosen]
    assert len(alone) == SAMPLES
    torch.testing.assert_close(torch.stack(alone).sum(), whole, rtol=1e-10, atol=1e-10)
