"""Our PNG encoder: Pillow and OpenCV read from it what was put in, whatever the size."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lens_core.storage.lineage import read_receipt
from lens_serve.images.png import encode_png

RECEIPT = {"prompt": 'ein roter Kreis, 你好 🟥\n"quoted" \\', "seed": 2**63 - 1, "model": None, "guidance": 1.5}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        image.load()  # checks the sums of all chunks
        return np.asarray(image)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 256]))
def test_every_size_comes_back(height, width, seed, levels):
    image = np.random.default_rng(seed).integers(0, levels, (height, width, 3), dtype=np.uint8)
    data = encode_png(image, RECEIPT)
    np.testing.assert_array_equal(by_pillow(data), image)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), image)


@pytest.mark.parametrize("size", [(1, 1), (1, 2080), (2080, 1), (1040, 2080)])
def test_the_largest_and_the_smallest_come_back(size):
    image = noise(*size)
    np.testing.assert_array_equal(by_pillow(encode_png(image)), image)


def test_views_that_are_not_contiguous_come_back():
    image = noise(20, 30)[::-2, ::3, ::-1]
    np.testing.assert_array_equal(by_pillow(encode_png(image)), image)


def test_the_receipt_is_read_as_lens_trace_reads_it():
    data = encode_png(noise(3, 5), RECEIPT)
    assert read_receipt(data) == RECEIPT
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert list(image.text) == ["lens"]
    assert read_receipt(encode_png(noise(3, 5))) is None


def test_the_receipt_stands_before_the_pixels():
    """So that it is found in the first kilobytes of a file."""
    data, kinds, place = encode_png(noise(3, 5), RECEIPT), [], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kinds.append(data[place + 4 : place + 8])
        place += 12 + length
    assert kinds == [b"IHDR", b"iTXt", b"IDAT", b"IEND"]


def test_smooth_pictures_become_smaller():
    ramp = np.add.outer(np.arange(256), np.arange(256))[..., None].repeat(3, -1) // 2
    assert len(encode_png(ramp.astype(np.uint8))) < 256 * 256 * 3 / 20
