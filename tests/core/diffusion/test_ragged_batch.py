"""The ragged batch refuses what does not fit together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.diffusion.packs import pack, random_samples
from lens_core.diffusion.ragged import offsets_of


@pytest.fixture
def batch():
    """Three segments: 2x3, 4x4 and 1x2 image tokens with 5, 0 and 3 text tokens."""
    return pack(random_samples()[:3])


def test_offsets_begin_at_zero_and_end_at_the_sum():
    offsets = offsets_of([5, 0, 3])
    assert offsets.tolist() == [0, 5, 5, 8]
    assert offsets.dtype == torch.int32
    assert offsets_of([]).tolist() == [0]


def test_lengths(batch):
    assert batch.image_lengths == [6, 16, 2]
    assert batch.text_lengths == [5, 0, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: {"image_offsets": b.image_offsets[:-1]}, "3 grids need offsets of length 4"),
        (lambda b: {"text_offsets": b.text_offsets[1:]}, "3 grids need offsets of length 4"),
        (lambda b: {"timestep": b.timestep[:2]}, r"3 segments need as many timesteps, not \(2,\)"),
        (lambda b: {"timestep": b.timestep[:, None]}, r"3 segments need as many timesteps, not \(3, 1\)"),
        (lambda b: {"timestep": b.timestep[0]}, r"3 segments need as many timesteps, not \(\)"),
        (lambda b: {"grids": torch.tensor([(2, 3), (4, 5), (1, 2)])}, "must fill its grid"),
        (lambda b: {"image_offsets": offsets_of([16, 6, 2])}, "must fill its grid"),
        (lambda b: {"image": b.image[:-1]}, "image_offsets must cover the image tokens exactly"),
        (lambda b: {"image": torch.cat([b.image, b.image])}, "image_offsets must cover the image tokens exactly"),
        (lambda b: {"text": [layer[1:] for layer in b.text]}, "text_offsets must cover the text features exactly"),
        (lambda b: {"text": [*b.text[:-1], b.text[-1][:0]]}, "text_offsets must cover the text features exactly"),
        (lambda b: {"text_offsets": offsets_of([5, 1, 3])}, "text_offsets must cover the text features exactly"),
    ],
)
def test_what_does_not_fit_is_refused(batch, change, words):
    with pytest.raises(ValueError, match=words):
        replace(batch, **change(batch))


def test_batch_does_not_change(batch):
    with pytest.raises(AttributeError):
        batch.timestep = torch.ones(3)
