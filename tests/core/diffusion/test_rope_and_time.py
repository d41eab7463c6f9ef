"""Rotary positions and the timestep's sinusoid: closed forms, computed here without torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lens_core.diffusion.models.lens.model import rope_table, timestep_embedding
from lens_core.diffusion.ragged import offsets_of

AXES = (8, 28, 28)
HEIGHT, WIDTH = 4, 18  # where the channel pairs of these axes begin; the frame's begin at 0


def positions(h, w, text):
    """(frame, row, column) of a segment's image tokens and then of its text."""
    image = [(0, row - (h - h // 2), column - (w - w // 2)) for row in range(h) for column in range(w)]
    return image, [(max(h // 2, w // 2) + i,) * 3 for i in range(text)]


def table_of(positions, axes):
    angles = [
        [
            position * 10_000 ** (-2 * k / size)
            for position, size in zip(place, axes, strict=True)
            for k in range(size // 2)
        ]
        for place in positions
    ]
    return np.exp(1j * np.array(angles, dtype=np.float64).reshape(len(positions), sum(axes) // 2))


def table(grids, texts, axes=AXES):
    return torch.cat(rope_table(torch.tensor(grids), offsets_of(texts), axes, torch.device("cpu")))[:, 0].numpy()


def whole_positions(column):
    """The first frequency of an axis is 1: its angle is the position itself, while that is below π."""
    return np.angle(column).round(5).tolist()


@pytest.mark.parametrize(("size", "rows"), [(1, [-1]), (2, [-1, 0]), (3, [-2, -1, 0]), (4, [-2, -1, 0, 1])])
def test_rows_and_columns_are_centred(size, rows):
    assert whole_positions(table([(size, 1)], [0])[:, HEIGHT]) == rows
    assert whole_positions(table([(1, size)], [0])[:, WIDTH]) == rows


def test_rows_are_the_outer_loop():
    rows, columns = (whole_positions(table([(2, 3)], [0])[:, axis]) for axis in (HEIGHT, WIDTH))
    assert list(zip(rows, columns, strict=True)) == [(-1, -2), (-1, -1), (-1, 0), (0, -2), (0, -1), (0, 0)]


def test_image_tokens_are_in_frame_zero():
    assert (table([(3, 5)], [4])[:15, :HEIGHT] == 1).all()


@pytest.mark.parametrize(("grid", "start"), [((3, 2), 1), ((2, 3), 1), ((2, 2), 1), ((1, 1), 0), ((1, 5), 2)])
def test_text_starts_beyond_the_positive_corner(grid, start):
    text = table([grid], [2])[grid[0] * grid[1] :]
    for axis in (0, HEIGHT, WIDTH):
        assert whole_positions(text[:, axis]) == [start, start + 1]


def test_frequencies():
    """A text token at position 1 shows them all."""
    angles = np.angle(table([(2, 2)], [1])[-1])
    assert angles[:4] == pytest.approx([1, 0.1, 0.01, 0.001], abs=1e-7)
    for axis in (HEIGHT, WIDTH):
        known = [1, 0.517947, 0.268270, 0.138950, 0.071969, 0.037276, 0.019307, 0.01]
        assert angles[axis : axis + 8] == pytest.approx(known, abs=1e-6)
        assert angles[axis + 13] == pytest.approx(0.000193, abs=1e-6)


@pytest.mark.parametrize("axes", [AXES, (4, 6, 6)])
def test_table_of_a_pack(axes):
    """All image tokens come first, then all text; every segment has its own positions."""
    grids, texts = [(65, 3), (4, 4), (1, 2), (90, 90)], [5, 0, 3, 2]
    image, text = [], []
    for (h, w), n in zip(grids, texts, strict=True):
        more_image, more_text = positions(h, w, n)
        image += more_image
        text += more_text
    expected = table_of([*image, *text], axes)
    np.testing.assert_allclose(table(grids, texts, axes), expected, atol=1e-5)


def test_timestep_embedding_of_a_half():
    (e,) = timestep_embedding(torch.tensor([0.5])).tolist()
    assert len(e) == 256
    known = {0: -0.883849, 1: 0.945943, 2: 0.848515, 127: 0.998557, 128: -0.467772, 129: 0.324334, 130: -0.529172}
    for k, value in (known | {255: 0.053705}).items():
        assert e[k] == pytest.approx(value, abs=2e-5), k


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-4)])
def test_timestep_embedding_is_cosines_then_sines(dtype, tolerance):
    times = torch.tensor([0.0, 0.001, 0.3216, 0.90814, 1.0], dtype=dtype)
    embedding = timestep_embedding(times)
    assert embedding.dtype == dtype
    for row, t in zip(embedding.tolist(), times.tolist(), strict=True):
        angles = [1000 * t * 10_000 ** (-k / 128) for k in range(128)]
        assert row == pytest.approx([*map(math.cos, angles), *map(math.sin, angles)], abs=tolerance)


def test_timestep_embedding_is_exact_whatever_the_dtype():
    time = torch.tensor([0.75])  # exact in bfloat16
    assert torch.equal(timestep_embedding(time.bfloat16()), timestep_embedding(time))
