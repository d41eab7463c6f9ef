"""The decoder: every kind of file that people have is the same upright sRGB pixels, and every bad one is told."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lens_core.errors import ImageError
from lens_core.images import MAX_PIXELS, Candidate, decode, fit, header, to_jpeg

# Plain blocks of 16 pixels survive JPEG; no two corners are alike, so that every wrong turn shows.
BLOCKS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 255, 255], [0, 0, 0]]], dtype=np.uint8)
UPRIGHT = BLOCKS.repeat(16, axis=0).repeat(16, axis=1)
NOISE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)

# From the EXIF standard: which side of the upright picture the stored rows begin at, then the stored columns.
STORED = {
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.swapaxes(0, 1),  # left, top
    6: UPRIGHT.swapaxes(0, 1)[::-1],  # right, top
    7: UPRIGHT.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: UPRIGHT.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


def encoded(image, format_, **options):
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    image.save(stream, format_, **options)
    return stream.getvalue()


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *, depth, kind, rows=b"", extra=b""):
    """A PNG by hand, of depths that Pillow does not write."""
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def reason(read, data):
    """Why `data` cannot be read, or None."""
    try:
        read(data)
    except ImageError as error:
        return str(error)
    return None


def exchanged_primaries():
    """A colour profile in which red and green have changed places."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (count,) = struct.unpack_from(">I", plain, 128)
    table = plain[132 : 132 + 12 * count]
    swapped = table.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return plain.replace(table, swapped)


FILES = {
    "jpeg": encoded(NOISE, "JPEG", exif=oriented(6), icc_profile=exchanged_primaries()),
    "progressive": encoded(NOISE, "JPEG", progressive=True),
    "cmyk": encoded(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
    "png": encoded(NOISE, "PNG", exif=oriented(5), icc_profile=exchanged_primaries()),
    "palette": encoded(Image.fromarray(NOISE).quantize(16), "PNG", transparency=3),
    "sixteen": encoded(NOISE[..., 0].astype(np.uint16) * 257, "PNG"),
    "webp": encoded(NOISE, "WEBP", exif=oriented(8)),
    "lossless": encoded(NOISE, "WEBP", lossless=True),
    "gif": encoded(NOISE, "GIF", save_all=True, append_images=[Image.fromarray(NOISE[::-1])]),
    "tiff": encoded(NOISE, "TIFF", exif=oriented(7)),
    "bmp": encoded(NOISE, "BMP"),
}


@pytest.mark.parametrize("number", STORED)
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_upright(format_, number):
    lossless = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(STORED[number], format_, exif=oriented(number), **lossless)
    pixels = decode(data)
    assert pixels.shape == UPRIGHT.shape
    # JPEG's chroma is coarse: the middles of the blocks tell.
    assert np.abs(pixels[8::16, 8::16].astype(int) - UPRIGHT[8::16, 8::16]).max() <= (3 if format_ == "JPEG" else 0)
    assert format_ == "JPEG" or np.array_equal(pixels, UPRIGHT)
    assert (header(data).height, header(data).width) == UPRIGHT.shape[:2]


def test_an_orientation_behind_a_pngs_pixels_counts():
    data = encoded(STORED[6], "PNG", exif=oriented(6))
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack_from(">I", data, start)[0]
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert np.array_equal(decode(moved), UPRIGHT)
    assert (header(moved).height, header(moved).width) == UPRIGHT.shape[:2]


@pytest.mark.parametrize("name", FILES)
def test_header_agrees_with_the_pixels(name):
    info = header(FILES[name])
    assert (info.height, info.width) == decode(FILES[name]).shape[:2]
    formats = {"progressive": "jpeg", "cmyk": "jpeg", "palette": "png", "sixteen": "png", "lossless": "webp"}
    assert info.format == formats.get(name, name)


def test_result_is_bytes_of_three_channels():
    for data in FILES.values():
        pixels = decode(data)
        assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)


@pytest.mark.parametrize(
    ("inks", "colour"),
    [
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 0, 255, 0), (0, 255, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_cmyk_jpeg_is_not_a_negative(inks, colour):
    data = encoded(Image.new("CMYK", (16, 16), inks), "JPEG", quality=95)
    assert np.abs(decode(data).astype(int) - colour).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode):
    grey = (100, 100, 100) if mode == "RGBA" else (100,)
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*grey, alpha))
    pixels = decode(encoded(image, "PNG"))[0]
    assert np.abs(pixels.astype(int) - [[255], [177], [100]]).max() <= 1


def test_a_palette_may_be_half_transparent():
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata([0, 1, 2])
    pixels = decode(encoded(image, "PNG", transparency=bytes([255, 0, 128])))[0]
    assert np.abs(pixels.astype(int) - [[200, 0, 0], [255, 255, 255], [127, 127, 227]]).max() <= 1
    assert np.array_equal(decode(encoded(image, "PNG"))[0], [[200, 0, 0], [0, 200, 0], [0, 0, 200]])


@pytest.mark.parametrize(("mode", "clear", "other"), [("RGB", (9, 8, 7), (7, 8, 9)), ("L", 9, 7), ("1", 1, 0)])
def test_one_colour_may_be_transparent(mode, clear, other):
    image = Image.new(mode, (2, 1), other)
    image.putpixel((0, 0), clear)
    left, right = decode(encoded(image, "PNG", transparency=clear))[0]
    assert left.tolist() == [255, 255, 255]
    assert right.tolist() == list(other if mode == "RGB" else [other] * 3)


def test_sixteen_bits_are_scaled_not_clipped():
    samples = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    for format_ in ("PNG", "TIFF"):
        assert np.array_equal(decode(encoded(samples, format_))[..., 1].ravel(), np.arange(256))
    assert decode(encoded(np.full((1, 1), 65535, np.uint16), "PNG")).tolist() == [[[255, 255, 255]]]


def test_sixteen_bits_in_big_endian_and_in_colour():
    samples = np.arange(256, dtype=">u2").reshape(16, 16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in samples)
    assert np.array_equal(decode(png(16, 16, depth=16, kind=2, rows=rows))[..., 2].ravel(), np.arange(256))
    assert np.array_equal(decode(encoded(Image.fromarray(samples), "TIFF"))[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_float_samples_say_their_scale_by_their_largest(top):
    values = np.array([[0, 0.2, 0.4, 1]], dtype=np.float32) * top
    assert decode(encoded(values, "TIFF"))[0, :, 0].tolist() == [0, 51, 102, 255]


def test_float_samples_that_are_no_numbers_or_below_zero_are_black():
    values = np.array([[np.nan, -3, 1]], dtype=np.float32)
    assert decode(encoded(values, "TIFF"))[0, :, 0].tolist() == [0, 0, 255]


def test_one_bit():
    board = np.indices((8, 8)).sum(0) % 2 == 0
    for format_ in ("PNG", "TIFF"):
        assert np.array_equal(decode(encoded(Image.fromarray(board), format_))[..., 0], board * 255)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_converted(mode):
    image = Image.new("RGB", (16, 16), (255, 0, 0)).convert(mode)
    pixels = decode(encoded(image, "PNG", icc_profile=exchanged_primaries()))
    assert np.abs(pixels.astype(int) - [0, 255, 0]).max() <= 2


def test_srgb_needs_no_change():
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.abs(decode(encoded(NOISE, "PNG", icc_profile=plain)).astype(int) - NOISE).max() <= 1


@pytest.mark.parametrize("profile", [b"junk", exchanged_primaries()[:200], exchanged_primaries()[:-300]])
def test_a_broken_profile_is_ignored(profile):
    assert np.array_equal(decode(encoded(NOISE, "PNG", icc_profile=profile)), NOISE)


def test_a_profile_for_other_pixels_is_ignored():
    grey = NOISE[..., 0]
    assert np.array_equal(decode(encoded(grey, "PNG", icc_profile=exchanged_primaries()))[..., 0], grey)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(format_):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], duration=100)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(decode(data).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("name", FILES)
def test_cut_anywhere_it_is_an_error_or_whole(name):
    data, whole = FILES[name], decode(FILES[name])
    for length in [*range(0, len(data), 7), *range(len(data) - 40, len(data))]:
        if reason(decode, data[:length]) is None:
            # What ends a PNG says nothing of its pixels, nor does a GIF's second frame of its first.
            assert name in {"png", "palette", "sixteen", "gif"}
            assert name == "gif" or length > len(data) - 40
            assert np.array_equal(decode(data[:length]), whole)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"this is a letter, not a picture", "it is not an image"),
        (encoded(UPRIGHT, "EPS"), "it is not an image"),
        (b"\x89PNG\r\n\x1a\n", "it is not an image"),
        (FILES["cmyk"][: len(FILES["cmyk"]) // 2], "it is truncated"),
        (FILES["progressive"][: len(FILES["progressive"]) // 2], "it is truncated"),
        (FILES["png"][: len(FILES["png"]) // 2], "it is truncated"),
        (FILES["bmp"][: len(FILES["bmp"]) // 2], "it is truncated"),
        (FILES["webp"][: len(FILES["webp"]) // 2], "it is damaged"),
        (FILES["tiff"][:-9], "it is truncated"),
        (png(4, 4, depth=8, kind=2, rows=b"\0" * 52).replace(b"IDAT\x78", b"IDAT\x00"), "it is damaged"),
    ],
)
def test_what_is_wrong_is_said(data, words):
    said = reason(decode, data)
    assert words in said
    assert said.splitlines() == [said]


@pytest.mark.parametrize("data", [b"", b"text"])
def test_header_of_no_image(data):
    with pytest.raises(ImageError):
        header(data)


def test_header_needs_no_pixels():
    info = header(png(640, 480, depth=8, kind=2))
    assert (info.width, info.height, info.format) == (640, 480, "png")


def test_pillows_warnings_stay_inside():
    # The length of the first EXIF entry is beyond the file: Pillow warns, and reads on.
    exif = b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHII", 0x010F, 2, 5000, 26)
    data = encoded(NOISE, "WEBP", exif=exif)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode(data).shape == NOISE.shape
        assert header(data).width == NOISE.shape[1]
    assert caught == []


def test_bombs_are_refused_before_they_are_decoded():
    # In a process of its own, whose peak of memory nothing else has raised.
    code = """
import io, resource, struct, sys, zlib
from lens_core.errors import ImageError
from lens_core.images import decode, header
from PIL import Image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "linux" else 1024)
def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
def png(side):
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
stream = io.BytesIO()
Image.new("1", (16, 16)).save(stream, "BMP")
bmp = bytearray(stream.getvalue())
bmp[18:26] = struct.pack("<II", 60000, 60000)
decode(stream.getvalue())
before = peak()
for data in (png(100_000), png(14_000), bytes(bmp)):
    for read in (header, decode):
        try:
            read(data)
        except ImageError as error:
            assert "it claims" in str(error), error
        else:
            raise AssertionError(read)
assert header(png(13_000)).width == 13_000
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10_000, "kilobytes"


def test_just_at_the_bound_is_fine():
    width = MAX_PIXELS // 10
    assert header(png(width, 10, depth=1, kind=0)).width == width
    with pytest.raises(ImageError, match="more than 178,956,970 pixels"):
        header(png(width + 1, 10, depth=1, kind=0))


def test_the_bound_is_our_own(monkeypatch):
    # Many a library turns Pillow's bound off, for everybody in the process.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for read in (header, decode):
        with pytest.raises(ImageError, match="it claims 100000x100000, more than 178,956,970 pixels"):
            read(png(100_000, 100_000, depth=1, kind=0))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_damage_only_ever_raises_image_errors(name, data):
    damaged = bytearray(FILES[name])
    # Most of what matters stands in the first bytes.
    places = st.integers(0, len(damaged) - 1) | st.integers(0, min(len(damaged), 120) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        damaged[place] = value
    cut = bytes(damaged[: data.draw(st.integers(1, len(damaged)) | st.just(len(damaged)))])
    for read in (header, decode):
        assert reason(read, cut) != ""


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM"])
)
def test_any_bytes_only_ever_raise_image_errors(data, start):
    for read in (header, decode):
        assert reason(read, start + data) != ""


def test_candidate_decodes_once_and_tells_each_time():
    candidate = Candidate("x.png", FILES["png"])
    assert candidate.pixels() is candidate.pixels()
    assert candidate.info is candidate.info
    bad = Candidate("x.png", b"text")
    for _ in range(2):
        with pytest.raises(ImageError, match="not an image"):
            bad.pixels()


def test_fit_cuts_the_middle_out():
    bands = np.zeros((30, 90, 3), dtype=np.uint8)
    bands[:, 30:60] = 200
    assert np.array_equal(fit(bands, 30, 30), bands[:, 30:60])
    assert np.array_equal(fit(bands.swapaxes(0, 1), 30, 30), bands[:, 30:60])
    assert fit(bands, 30, 90) is bands


@settings(max_examples=40, deadline=None)
@given(*[st.integers(1, 70)] * 4)
def test_fit_gives_the_size_asked_for_and_no_border(height, width, new_height, new_width):
    pixels = fit(np.full((height, width, 3), (10, 120, 250), dtype=np.uint8), new_height, new_width)
    assert pixels.shape == (new_height, new_width, 3)
    assert (pixels == (10, 120, 250)).all()


@pytest.mark.parametrize(
    ("size", "sent"), [((300, 200), (100, 67)), ((200, 300), (67, 100)), ((80, 60), (80, 60)), ((1000, 1), (100, 1))]
)
def test_a_sent_jpeg_is_no_larger_than_asked(size, sent):
    pixels = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    image = Image.open(io.BytesIO(to_jpeg(pixels, max_side=100, quality=90)))
    assert (image.format, image.size) == ("JPEG", sent)


def test_a_sent_jpeg_is_the_same_every_time_and_larger_in_better_quality():
    assert to_jpeg(NOISE, max_side=100, quality=90) == to_jpeg(NOISE.copy(), max_side=100, quality=90)
    assert len(to_jpeg(NOISE, max_side=100, quality=90)) > len(to_jpeg(NOISE, max_side=100, quality=50))


def test_heif_is_an_image_with_the_extra():
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(np.ascontiguousarray(np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)))
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=95)
    assert header(stream.getvalue()).format == "heif"
    pixels = decode(stream.getvalue())
    assert np.abs(pixels.astype(int) - np.asarray(image)).mean() < 8
    with pytest.raises(ImageError):
        decode(stream.getvalue()[: len(stream.getvalue()) * 2 // 3])


def test_heif_without_the_extra_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("lens_core.images.pillow_heif", None)
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    for read in (header, decode):
        with pytest.raises(ImageError, match=r"it is a HEIF image, .*lens-core\[heif\]"):
            read(data)


def test_a_lack_of_memory_is_no_damage(tmp_path):
    Image.new("1", (8000, 8000)).save(tmp_path / "large.png")
    script = """
import resource, sys
from pathlib import Path
from lens_core.images import decode
data = Path(sys.argv[1]).read_bytes()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
try:
    decode(data)
except MemoryError:
    print("out of memory")
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "large.png"], capture_output=True, text=True)
    assert done.stdout == "out of memory\n", done.stderr
