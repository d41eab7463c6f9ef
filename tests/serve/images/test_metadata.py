"""Receipts in image files: each format gives back what was written, and damage is no receipt."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lens_serve.images.encoders import encode_image
from lens_serve.images.metadata import exif_with_receipt, read_receipt, without_prompts

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
FORMATS = ("png", "jpeg", "webp")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def receipt_of(prompt, **changes):
    receipt = {"prompt": prompt, "rewritten_prompt": prompt, "negative": prompt, "prompt_sha256": "00", "seed": 7}
    return {**receipt, **changes}


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(0, 2**63 - 1), st.sampled_from(FORMATS))
def test_a_receipt_comes_back_from_each_format(prompt, seed, format):
    receipt = receipt_of(prompt, seed=seed)
    found = read_receipt(encode_image(IMAGE, format=format, quality=80, receipt=receipt))
    lossy = {} if format == "png" else {"format": format, "quality": 80}
    assert found == {**receipt, **lossy}


@pytest.mark.parametrize("format", FORMATS)
def test_a_receipt_survives_being_saved_again_with_its_metadata(format):
    data = encode_image(IMAGE, format=format, receipt=receipt_of("ein Kätzchen 🐱"))
    with Image.open(io.BytesIO(data)) as image:
        stream = io.BytesIO()
        kept = {"exif": image.getexif()} if format != "png" else {"pnginfo": _texts(image)}
        image.save(stream, format.upper(), **kept)
    assert read_receipt(stream.getvalue()) == read_receipt(data)


def _texts(image):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for keyword, text in image.text.items():
        info.add_itxt(keyword, text)
    return info


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_the_longest_prompts_fit_and_longer_ones_are_left_out(format):
    longest = receipt_of("🐱" * 4000)
    assert read_receipt(encode_image(IMAGE, format=format, receipt=longest))["prompt"] == "🐱" * 4000
    found = read_receipt(encode_image(IMAGE, format=format, receipt=receipt_of("\x01" * 32_000)))
    assert found == {"prompt_sha256": "00", "seed": 7, "format": format, "quality": 100}


def test_only_prompts_are_left_out():
    assert without_prompts(receipt_of("a cat")) == {"prompt_sha256": "00", "seed": 7}


def test_comments_in_the_other_byte_order_are_read():
    block = exif_with_receipt({"a": 1}).replace('{"a": 1}'.encode("utf-16-be"), '{"a": 1}'.encode("utf-16-le"))
    stream = io.BytesIO()
    Image.fromarray(IMAGE).save(stream, "JPEG", exif=block)
    assert read_receipt(stream.getvalue()) == {"a": 1}


def test_strangers_files_have_no_receipt():
    stream = io.BytesIO()
    Image.fromarray(IMAGE).save(stream, "JPEG", exif=exif_with_receipt({"a": 1}).replace(b"\0}", b"\0]"))
    assert read_receipt(stream.getvalue()) is None
    for comment in (b"", b"UNICODE\0", b"ASCII\0\0\0hello", b"UNICODE\0\0[\0]", b"UNICODE\0\xd8"):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = comment
        stream = io.BytesIO()
        Image.fromarray(IMAGE).save(stream, "WEBP", exif=exif)
        assert read_receipt(stream.getvalue()) is None
    assert read_receipt(b"") is None
    assert read_receipt(b"GIF89a") is None


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_damaged_files_have_a_receipt_or_none(format, seed, flips):
    data = bytearray(encode_image(IMAGE, format=format, receipt=receipt_of("a cat")))
    generator = np.random.default_rng(seed)
    for place in generator.integers(0, len(data), flips):
        data[place] = generator.integers(0, 256)
    found = read_receipt(bytes(data[: generator.integers(0, len(data) + 1)]))
    assert found is None or isinstance(found, dict)


def test_a_header_that_claims_terabytes_is_no_receipt():
    data = bytearray(encode_image(IMAGE, format="jpeg", receipt={"a": 1}))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 65_500, 65_500)
    assert read_receipt(bytes(data)) is None
