"""Encoders: files of three formats, off the event loop, with their receipts."""

from __future__ import annotations

import asyncio
import io
import threading

import numpy as np
import pytest
from PIL import Image, features

from lens_core.images import decode
from lens_serve.config import OutputSettings
from lens_serve.images.encoders import MIME_TYPES, Encoders, encode_image
from lens_serve.images.metadata import read_receipt

RAMP = np.add.outer(np.arange(64), np.arange(96))[..., None].repeat(3, -1).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
RECEIPT = {"prompt": "a secret", "rewritten_prompt": "a big secret", "negative": "spies", "rewritten_sha256": "ab"}


@pytest.fixture
def encoders():
    with_prompts, without = Encoders(OutputSettings()), Encoders(OutputSettings(prompt_in_image=False))
    yield with_prompts, without
    with_prompts.close()
    without.close()


def encode(encoders, image=RAMP, *, format="png", compression=None, receipt=RECEIPT):
    return asyncio.run(
        encoders.encode(image, format=format, compression=compression, receipt=receipt, from_picture=False)
    )


@pytest.mark.parametrize("format", MIME_TYPES)
def test_each_format_is_what_it_says_and_shows_the_picture(encoders, format):
    data = encode(encoders[0], format=format)
    with Image.open(io.BytesIO(data)) as image:
        assert image.get_format_mimetype() == MIME_TYPES[format]
    assert np.abs(decode(data).astype(int) - RAMP).max() <= (0 if format == "png" else 6)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_compression_is_a_quality(encoders, format):
    sizes = [len(encode(encoders[0], NOISE, format=format, compression=quality)) for quality in (0, 1, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2
    assert encode(encoders[0], NOISE, format=format) == encode(encoders[0], NOISE, format=format, compression=100)


def test_compression_means_nothing_to_a_png(encoders):
    assert encode(encoders[0], compression=10) == encode(encoders[0])


@pytest.mark.parametrize("format", MIME_TYPES)
def test_prompts_stay_out_of_files_that_must_not_tell_them(encoders, format):
    assert read_receipt(encode(encoders[0], format=format)).items() >= RECEIPT.items()
    data = encode(encoders[1], format=format)
    assert read_receipt(data)["rewritten_sha256"] == "ab"
    for word in ("secret", "spies"):
        assert word.encode() not in data
        assert word.encode("utf-16-be") not in data


def test_colour_is_whole_in_a_good_jpeg_only():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0] = 255
    errors = [
        np.abs(decode(encode_image(stripes, format="jpeg", quality=quality)).astype(int) - stripes).mean()
        for quality in (89, 90)
    ]
    assert errors[0] > 4 * errors[1]


def test_files_are_the_same_every_time():
    assert features.check("webp")
    for format in MIME_TYPES:
        assert len({encode_image(NOISE, format=format, quality=80, receipt=RECEIPT) for _ in range(3)}) == 1


def test_the_event_loop_goes_on_meanwhile(encoders):
    large = np.random.default_rng(1).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)

    async def run():
        turns = 0
        tasks = [
            asyncio.create_task(
                encoders[0].encode(large, format=format, compression=90, receipt=RECEIPT, from_picture=False)
            )
            for format in MIME_TYPES
        ]
        while not all(task.done() for task in tasks):
            turns += 1
            await asyncio.sleep(0)
        return turns, [len(task.result()) for task in tasks]

    turns, sizes = asyncio.run(run())
    assert turns > 10  # an encoder on the loop would have let it turn once
    assert min(sizes) > 100_000


def test_closing_leaves_no_thread():
    before = set(threading.enumerate())
    encoders = Encoders(OutputSettings(threads=3))
    asyncio.run(encoders.encode(RAMP, format="png", compression=None, receipt=RECEIPT, from_picture=False))
    assert set(threading.enumerate()) - before
    encoders.close()
    assert not set(threading.enumerate()) - before
