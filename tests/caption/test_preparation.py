"""What is sent of an image: the same picture whichever way it was read, and the same bytes whoever made them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms

from lens_caption.captioners.openai.config import OpenAIConfig
from lens_caption.captioners.openai.picture import sent_jpeg, sent_size
from lens_caption.captioners.openai.requests import RequestPlan, build_request
from lens_caption.engine.prepare import Preparer
from lens_caption.engine.request import BadImage
from lens_core.contracts import ImageItem
from lens_core.errors import ImageError
from lens_core.images import decode, header

ORIENTATION = 0x0112


def scene(width=200, height=120):
    """Four colours in a soft pattern: a turn, a mirror or a wrong profile moves every pixel far."""
    y, x = np.mgrid[0:height, 0:width]
    wave = 40 * np.sin(x / 9) * np.cos(y / 7)
    corners = np.array([[[210, 60, 50], [60, 200, 70]], [[50, 80, 210], [200, 190, 60]]], float)
    base = corners[(2 * y // height)[..., None], (2 * x // width)[..., None], np.arange(3)]
    return Image.fromarray(np.clip(base + wave[..., None], 0, 255).astype(np.uint8))


def saved(image, kind="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 92} if kind == "JPEG" else {}), **options)
    return stream.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(scene(), exif=exif.tobytes())


def profiled():
    """A JPEG whose profile calls its red green and its green red."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return saved(
        scene(), icc_profile=plain.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    )


def translucent():
    image = scene().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return saved(image, "PNG")


def deep():
    grey = np.asarray(scene().convert("L")).astype(np.uint16) * 257
    return saved(Image.fromarray(grey), "PNG")


PLAIN = {
    "4:2:0": saved(scene(), subsampling="4:2:0"),
    "4:4:4": saved(scene(), subsampling="4:4:4"),
    "4:2:2": saved(scene(), subsampling="4:2:2"),
    "progressive": saved(scene(), progressive=True),
    "grey": saved(scene().convert("L")),
    "restarts": saved(scene(), restart_marker_blocks=3),
    "RGB": saved(scene(), keep_rgb=True),
    "upright by EXIF": turned(1),
    "EXIF of no meaning": saved(scene(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12"),
}
ODD = {
    **{f"orientation {number}": turned(number) for number in range(2, 9)},
    "orientation of no meaning": turned(77),
    "profile": profiled(),
    "broken profile": saved(scene(), icc_profile=b"no profile"),
    "CMYK": saved(scene().convert("CMYK")),
    "translucent": translucent(),
    "16 bits": deep(),
    "palette": saved(scene().quantize(16), "PNG"),
    "webp": saved(scene(), "WEBP"),
    "gif": saved(scene(), "GIF"),
}


def difference(one, other):
    return np.abs(one.astype(int) - other.astype(int)).mean()


@pytest.mark.parametrize("max_side", [1000, 150, 77, 40])
@pytest.mark.parametrize("name", [*PLAIN, *ODD])
def test_it_is_the_picture_that_the_shared_decode_gives(name, max_side):
    """Beside Pillow's own filter and encoder, on the pixels that all of Lens agrees on."""
    data = (PLAIN | ODD)[name]
    pixels = decode(data)
    got = decode(sent_jpeg(data, max_side=max_side, quality=92))
    expected = Image.fromarray(pixels)
    expected.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    expected = decode(saved(expected))
    assert got.shape == expected.shape
    assert difference(got, expected) < 6
    assert difference(got[::-1], expected) > 10  # it could have failed


def test_a_profile_and_a_turn_are_seen():
    plain = decode(sent_jpeg(PLAIN["4:2:0"], max_side=100, quality=92))
    for name in ("profile", "orientation 2", "orientation 3", "orientation 4"):
        assert difference(decode(sent_jpeg(ODD[name], max_side=100, quality=92)), plain) > 20, name


@pytest.mark.parametrize("name", [*PLAIN, *ODD])
def test_what_needs_no_scaling_is_decoded_to_the_bit(name):
    data = (PLAIN | ODD)[name]
    exact = np.ascontiguousarray(decode(data))
    assert sent_jpeg(data, max_side=200, quality=80) == simplejpeg.encode_jpeg(exact, 80, colorsubsampling="420")


@pytest.mark.parametrize("max_side", [33, 64, 500])
def test_the_size_is_the_one_that_quotes_count_with(max_side):
    generator = random.Random(max_side)
    for _ in range(60):
        width, height = generator.choice([1, 2, 3, generator.randint(4, 900)]), generator.randint(1, 900)
        if generator.random() < 0.5:
            width, height = height, width
        info = header(sent_jpeg(saved(Image.new("RGB", (width, height))), max_side=max_side, quality=50))
        assert (info.width, info.height) == sent_size(width, height, max_side)
        assert max(info.width, info.height) == min(max_side, max(width, height))


def what_becomes_of(make):
    try:
        return make()
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("name", ["4:2:0", "progressive", "restarts", "grey"])
def test_damage_is_judged_by_the_shared_decode(name):
    """Cut off anywhere or with bytes changed: refused with the same words, or read to the same pixels."""
    generator, whole, refused = random.Random(name), PLAIN[name], 0
    for trial in range(150):
        data = bytearray(whole)
        if trial % 3 == 0:
            del data[generator.randrange(len(data)) :]
        for _ in range(generator.choice([0, 1, 5]) if trial % 3 else 0):
            data[generator.randrange(len(data))] = generator.randrange(256)
        broken = bytes(data)
        expected = what_becomes_of(
            lambda: simplejpeg.encode_jpeg(np.ascontiguousarray(decode(broken)), 80, colorsubsampling="420")  # noqa: B023
        )
        refused += isinstance(expected, str)
        assert what_becomes_of(lambda: sent_jpeg(broken, max_side=10_000, quality=80)) == expected  # noqa: B023
    assert 30 < refused < 140


def test_a_claim_of_too_many_pixels_is_refused_before_they_are_made():
    data = bytearray(PLAIN["4:2:0"])
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageError, match="pixels"):
        sent_jpeg(bytes(data), max_side=64, quality=80)


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize(
    "words",
    [
        {"instruction": 'Say "data:image/jpeg;base64," in Ελληνικά \\ and\n\t{"url":"data:image/jpeg;base64,"}.'},
        {"prompt": "structured-1", "detail": "low", "temperature": 0.5},
        {"prompt": "layered-1"},
    ],
    ids=["own words", "structured", "layers"],
)
def test_the_body_is_the_json_of_the_request(api, words):
    config = OpenAIConfig(model="m", base_url="http://127.0.0.1:1/v1", api=api, **words)
    body = RequestPlan.of(config).prepare("k", PLAIN["4:2:0"]).body
    jpeg = sent_jpeg(PLAIN["4:2:0"], max_side=config.max_side, quality=config.jpeg_quality)
    assert json.loads(body) == build_request(config, PLAIN["4:2:0"])
    assert body.count(base64.b64encode(jpeg)) == 1


def test_threads_and_processes_make_the_same_requests():
    plan = RequestPlan.of(OpenAIConfig(model="m", base_url="http://127.0.0.1:1/v1", max_side=64))
    items = [ImageItem(key=name, data=data) for name, data in (PLAIN | ODD | {"bad": b"no image"}).items()]

    async def made(workers):
        with Preparer(plan, workers) as preparer:
            return await asyncio.gather(*map(preparer, items))

    threads, processes = asyncio.run(made(0)), asyncio.run(made(2))
    assert threads == processes
    assert [request.key for request in threads] == [item.key for item in items]
    assert threads[-1] == BadImage(key="bad", detail="it is not an image")
