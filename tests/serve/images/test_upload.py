"""Uploads: what people send comes out upright, and what would hurt a decoder is one clear line."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lens_core.errors import ImageError
from lens_core.images import decode
from lens_serve.images import upload
from lens_serve.images.decoder import HEAD, _decoded
from lens_serve.images.upload import UploadError, read_upload
from serve.live import wait_until

NOISE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 255, (20, 24), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def saved(image, format_, **options):
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def read(data, *, max_pixels=10_000, max_bytes=1 << 20):
    return read_upload(data, max_pixels=max_pixels, max_bytes=max_bytes)


def refused(data, **bounds):
    with pytest.raises(UploadError) as error:
        read(data, **bounds)
    assert "\n" not in str(error.value)
    return str(error.value)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, rows):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_pixels_are_those_of_the_one_decoder(format_):
    data = saved(PICTURE, format_)
    pixels, alpha = read(data)
    np.testing.assert_array_equal(pixels, decode(data))
    assert alpha is None
    assert pixels.flags.writeable


def test_pictures_are_turned_upright_with_their_alpha():
    image = Image.fromarray(np.dstack([NOISE, ALPHA]))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored columns run up
    data = saved(image, "PNG", exif=exif)
    pixels, alpha = read(data)
    np.testing.assert_array_equal(alpha, np.rot90(ALPHA, -1))
    np.testing.assert_array_equal(pixels, decode(data))


def test_alpha_comes_from_every_way_of_storing_it():
    with_alpha, grey, palette = Image.fromarray(np.dstack([NOISE, ALPHA])), PICTURE.convert("L"), PICTURE.quantize(8)
    colour = int(np.asarray(grey)[0, 0])
    for data, expected in (
        (saved(with_alpha.convert("LA"), "PNG"), ALPHA),
        (saved(with_alpha, "WEBP", lossless=True), ALPHA),
        (saved(palette, "PNG", transparency=3), np.where(np.asarray(palette) == 3, 0, 255)),
        (saved(grey, "PNG", transparency=colour), np.where(np.asarray(grey) == colour, 0, 255)),
    ):
        np.testing.assert_array_equal(read(data)[1], expected)


def test_alpha_that_hides_nothing_is_none():
    assert read(saved(Image.fromarray(np.dstack([NOISE, np.full_like(ALPHA, 255)])), "PNG"))[1] is None


def test_profiles_metadata_and_odd_depths_are_read():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = Image.fromarray(NOISE[..., 0].astype(np.uint16) << 8)
    for data in (
        saved(PICTURE, "JPEG", icc_profile=profile, progressive=True),
        saved(PICTURE.convert("CMYK"), "JPEG"),
        saved(PICTURE, "WEBP", icc_profile=profile),
        saved(deep, "PNG"),
        saved(PICTURE.convert("1"), "PNG"),
    ):
        np.testing.assert_array_equal(read(data)[0], decode(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        saved(PICTURE, "GIF"),
        saved(PICTURE, "BMP"),
        saved(PICTURE, "TIFF"),
        b"RIFF\0\0\0\0WAVE",
        b"%!PS-Adobe-3.0",
    ],
    ids=["empty", "svg", "gif", "bmp", "tiff", "wav", "ps"],
)
def test_other_formats_are_refused_unread(data, monkeypatch):
    monkeypatch.setattr(upload.subprocess, "Popen", None)
    assert refused(data) == "the picture is no PNG, JPEG or WebP file"


def test_only_what_the_first_bytes_promise_is_opened():
    """A JPEG whose first segment is such that readers of AVIF and HEIF take it for theirs."""
    plain = saved(PICTURE, "JPEG")
    segment = b"ypavif".ljust(0x6674 - 2, b"\0")
    both = plain[:2] + b"\xff\xe9ft" + segment + plain[2:]
    assert both[4:12] == b"ftypavif"
    code = """
        from PIL import Image
        def spied(name, opener):
            def open_it(*arguments):
                print(name, file=sys.stderr)
                return opener(*arguments)
            return open_it
        for name, (opener, accepts) in list(Image.OPEN.items()):
            Image.OPEN[name] = spied(name, opener), accepts
        decoder._answer(1000)
    """
    process = in_the_decoder(code, data=both)
    assert {*process.stderr.decode().split()} == {"JPEG"}
    assert HEAD.unpack_from(process.stdout) == (3, 20, 24)
    np.testing.assert_array_equal(read(both)[0], decode(plain))


def test_too_many_bytes_are_refused_unread(monkeypatch):
    monkeypatch.setattr(upload.subprocess, "Popen", None)
    message = "the picture has 1,001 bytes; at most 1,000 are taken"
    assert refused(SIGNATURE + bytes(993), max_bytes=1000) == message


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_animations_are_refused(format_):
    data = saved(PICTURE, format_, save_all=True, append_images=[PICTURE.rotate(90)])
    assert refused(data) == "the picture cannot be used: it is animated"


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused(format_):
    data = saved(PICTURE, format_)
    assert refused(data[: len(data) // 2]).startswith("the picture cannot be used: it is ")


def test_bounds_are_exact():
    data = saved(PICTURE, "PNG")
    assert read(data, max_pixels=480, max_bytes=len(data))[0].shape == (20, 24, 3)
    message = "the picture cannot be used: it has 24x20 pixels; at most 479 are taken"
    assert refused(data, max_pixels=479) == message


def test_bombs_are_refused_by_their_header():
    square = png(2000, 2000, zlib.compress(bytes(2000 * 6001)))
    assert len(square) < 20_000
    assert "2000x2000" in refused(square)
    assert "claims" in refused(png(2**31 - 1, 2**31 - 1, b""))
    huge_text = SIGNATURE + png(2, 2, b"")[8:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(8 << 20)))
    assert refused(huge_text + png(2, 2, zlib.compress(bytes(14)))[33:]).startswith("the picture cannot be used")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_damaged_files_are_read_or_refused(format_, seed, flips):
    """What the process does, without the process."""
    data = bytearray(saved(PICTURE, format_))
    generator = np.random.default_rng(seed)
    for place in generator.integers(12, len(data), flips):
        data[place] = generator.integers(0, 256)
    try:
        pixels = _decoded(bytes(data[: generator.integers(12, len(data) + 1)]), 10_000)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[0] * pixels.shape[1] <= 10_000
    assert pixels.shape[2] in (3, 4)


def in_the_decoder(code, *, data=b"", max_pixels=1000, **environment):
    """Run some code as a decoder that a picture has taken over; returns the finished process."""
    program = "import sys\nfrom lens_serve.images import decoder\n"
    program += "decoder.Image.init()\ndecoder._give_up(int(sys.argv[1]))\n"
    return subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(code), str(max_pixels)],
        input=data,
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("open('/etc/hostname')", b"Too many open files"),
        ("import socket; socket.socket()", b"Too many open files"),
        ("bytearray(3 << 30)", b"MemoryError"),
    ],
    ids=["file", "socket", "memory"],
)
def test_a_decoder_cannot_take_what_it_gave_up(code, complaint):
    if "bytearray" in code and sys.platform != "linux":
        pytest.skip("no bound on memory here")
    process = in_the_decoder(code)
    assert process.returncode == 1
    assert complaint in process.stderr


def test_a_decoder_cannot_fill_the_disk(tmp_path):
    with (tmp_path / "answer").open("wb") as answer:
        program = "from lens_serve.images import decoder; decoder._give_up(1000); import os; os.write(1, bytes(5000))"
        process = subprocess.run([sys.executable, "-c", program], stdout=answer, timeout=60)
    assert process.returncode == 0  # part of it was written, as POSIX has it
    assert (tmp_path / "answer").stat().st_size == HEAD.size + 4000


def test_a_decoder_cannot_compute_for_ever():
    process = in_the_decoder("decoder.resource.setrlimit(decoder.resource.RLIMIT_CPU, (1, 1))\nwhile True: pass")
    assert process.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


FORKS = """
import os, sys
try:
    if os.fork() == 0:
        os._exit(0)
except BlockingIOError:
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no such bound here")
def test_a_decoder_cannot_make_another_process_unless_it_is_root():
    """Root may always; here it takes on the number of nobody first."""
    become = "os.getuid() or (os.setgid(65534), os.setuid(65534))\n"
    process = in_the_decoder("import os\n" + become + FORKS)
    assert process.returncode == 7, process.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="no such promise here")
def test_a_decoder_cannot_become_another_user():
    process = in_the_decoder("import ctypes; sys.exit(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))")
    assert process.returncode == 1, process.stderr


def test_what_a_decoder_began_ends_with_it_when_its_time_is_over(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "held")
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\n(echo begun; exec sleep 200) > {tmp_path}/held &\nsleep 200\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(upload.sys, "executable", str(stand_in))
    held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)

    def read_held():
        try:
            return os.read(held, 10)  # nothing, when nobody has it open for writing
        except BlockingIOError:
            return None

    try:
        for seconds in (0.3, 1, 3, 10, 30):  # until the shell has had time to begin anything
            monkeypatch.setattr(upload, "TIMEOUT_S", seconds)
            assert "within the time" in refused(saved(PICTURE, "PNG"))
            if begun := read_held():
                break
        assert begun == b"begun\n"
        wait_until(lambda: read_held() == b"", "the end of what the decoder began")
    finally:
        os.close(held)


@pytest.mark.parametrize("ending", ["exit", "killed", "hangs"])
def test_a_decoder_that_fails_is_one_line(tmp_path, monkeypatch, ending):
    """A real process in the decoder's place."""
    stand_in = tmp_path / "python"
    ends = {"exit": "exit 1", "killed": "kill -KILL $$", "hangs": "exec sleep 60"}
    stand_in.write_text(f"#!/bin/sh\n{ends[ending]}\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(upload.sys, "executable", str(stand_in))
    monkeypatch.setattr(upload, "TIMEOUT_S", 0.5 if ending == "hangs" else 30)
    assert refused(saved(PICTURE, "PNG")) == "the picture cannot be decoded within the time and memory that it may take"


def test_a_decoder_that_has_just_ended_may_not_be_ours_any_more(tmp_path, monkeypatch):
    """MacOS says so of one that was not waited for yet."""
    real = os.killpg

    def killpg(*args):
        real(*args)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", killpg)
    test_a_decoder_that_fails_is_one_line(tmp_path, monkeypatch, "hangs")


@pytest.mark.parametrize(
    "answer",
    [
        HEAD.pack(3, 2**31, 2**31),
        HEAD.pack(3, 1, 1) + b"12",
        HEAD.pack(7, 1, 1) + b"1234567",
        HEAD.pack(3, 0, 5),
        HEAD.pack(3, 200, 200) + bytes(120_000),
        b"",
        b"\x03",
    ],
)
def test_a_decoder_that_lies_is_not_believed(tmp_path, monkeypatch, answer):
    (tmp_path / "answer").write_bytes(answer)
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(upload.sys, "executable", str(stand_in))
    assert refused(saved(PICTURE, "PNG")) == "the picture cannot be used: it has confused its decoder"


def test_the_decoder_sees_no_secrets(tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr(upload.sys, "executable", str(stand_in))
    refused(saved(PICTURE, "PNG"))
    assert "PATH=" in (tmp_path / "seen").read_text()
    assert "secret" not in (tmp_path / "seen").read_text()
