"""Clarity, entropy and luminance against independent formulas, and the words in which they drop."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image
from pydantic import ValidationError

from core.textures import candidate, encoded, texture
from lens_core.filters import statistics
from lens_core.images import SMALL_SIDE, Candidate


@pytest.fixture
def check(lens_registry):
    def run(config, pixels):
        return lens_registry.build("filters", lens_registry.parse("filters", config)).check(candidate(pixels))

    return run


PICTURES = {
    "texture": texture(1, 64),
    "noise": np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8),
    "plain": np.full((30, 20, 3), 77, np.uint8),
    "row": np.random.default_rng(1).integers(0, 256, (1, 50, 3), dtype=np.uint8),
    "pixel": np.array([[[1, 200, 3]]], np.uint8),
    "edge": np.repeat(np.repeat(np.array([[0, 255]], np.uint8), 10, 0).repeat(5, 1)[..., None], 3, 2),
}
pictures = pytest.mark.parametrize("name", PICTURES)


def luma(pixels):
    """BT.601 in 16-bit fixed point, as in the JPEG standard's common implementation."""
    red, green, blue = np.moveaxis(pixels.astype(np.int64), 2, 0)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


@pictures
def test_grey_is_luma(name):
    assert np.array_equal(statistics.grey(PICTURES[name]), luma(PICTURES[name]))


@pictures
def test_clarity_is_scipys_laplacian(name):
    expected = scipy.ndimage.laplace(luma(PICTURES[name]).astype(np.float64), mode="nearest").var()
    assert statistics.clarity(PICTURES[name]) == pytest.approx(expected, rel=1e-12, abs=1e-9)


@pictures
def test_clarity_is_opencvs_laplacian(name):
    cv2 = pytest.importorskip("cv2")
    grey = np.pad(luma(PICTURES[name]).astype(np.uint8), 1, mode="edge")
    expected = cv2.Laplacian(grey, cv2.CV_64F, ksize=1)[1:-1, 1:-1].var()
    assert statistics.clarity(PICTURES[name]) == pytest.approx(expected, rel=1e-12, abs=1e-9)


@pictures
def test_entropy_is_scipys(name):
    histogram = np.histogram(luma(PICTURES[name]), bins=256, range=(0, 256))[0]
    assert statistics.entropy(PICTURES[name]) == pytest.approx(scipy.stats.entropy(histogram, base=2), abs=1e-12)


@pictures
def test_luminance_is_v_of_hsv(name):
    pixels = PICTURES[name].reshape(-1, 3) / 255
    expected = np.mean([colorsys.rgb_to_hsv(*pixel)[2] for pixel in pixels])
    assert statistics.luminance(PICTURES[name]) == pytest.approx(expected, abs=1e-12)


def test_extremes():
    all_greys = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert statistics.entropy(all_greys) == 8
    assert statistics.entropy(PICTURES["plain"]) == statistics.clarity(PICTURES["plain"]) == 0
    assert statistics.luminance(np.zeros((2, 2, 3), np.uint8)) == 0
    assert statistics.luminance(np.full((2, 2, 3), 255, np.uint8)) == 1


def test_the_small_copy_has_its_longer_side_fixed():
    for height, width in [(40, 60), (60, 40), (1000, 1), (2000, 700), (512, 512)]:
        small = candidate(np.full((height, width, 3), 9, np.uint8)).small()
        assert max(small.shape[:2]) == SMALL_SIDE
        assert min(small.shape[:2]) == max(1, round(min(height, width) * SMALL_SIDE / max(height, width)))
        assert (small == 9).all()


def test_blur_is_found_at_any_size(check):
    sharp = texture(3, 512)
    sharp = np.asarray(Image.fromarray(sharp).resize((1500, 1500), Image.Resampling.LANCZOS))
    blurred = scipy.ndimage.gaussian_filter(sharp, (12, 12, 0))
    scores = [check({"type": "clarity"}, pixels).score for pixels in (sharp, sharp[::3, ::3], blurred)]
    assert scores[0] > 10 * scores[2]
    assert scores[1] > 10 * scores[2]


def test_each_bound_keeps_its_own_value(check):
    pixels = texture(2)
    for name in ("clarity", "entropy"):
        score = check({"type": name, "min": 0}, pixels).score
        assert check({"type": name, "min": score}, pixels).reason is None
        verdict = check({"type": name, "min": score + 0.01}, pixels)
        assert (verdict.score, verdict.threshold) == (score, score + 0.01)
    score = check("luminance", pixels).score
    assert check({"type": "luminance", "min": score}, pixels).reason is None
    assert check({"type": "luminance", "max": score}, pixels).reason is None


def test_reasons_say_what_and_how_much(check):
    dark, bright = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    assert check("clarity", dark).reason == "it is blurred (clarity 0.0 < 20)"
    assert check("entropy", dark).reason == "there is little in it (entropy 0.00 < 3)"
    assert check("luminance", dark).reason == "it is too dark (V 0.000 < 0.05)"
    verdict = check("luminance", bright)
    assert (verdict.reason, verdict.threshold) == ("it is too bright (V 1.000 > 0.98)", 0.98)


def test_an_ordinary_picture_passes_all(check):
    for name in ("clarity", "entropy", "luminance", "exact-duplicates", "near-duplicates"):
        assert check(name, texture(1)).reason is None


@pytest.mark.parametrize(
    "config",
    [
        {"type": "clarity", "min": -1},
        {"type": "entropy", "min": 9},
        {"type": "luminance", "min": 0.5, "max": 0.5},
        {"type": "near-duplicates", "bits": 12},
    ],
)
def test_bounds_that_make_no_sense_are_refused(lens_registry, config):
    with pytest.raises(ValidationError):
        lens_registry.parse("filters", config)


def test_a_measure_is_taken_once():
    taken = []

    def compute():
        taken.append(1)
        return 1.5

    item = Candidate("x", b"")
    assert [item.measure("m", compute), item.measure("m", compute)] == [1.5, 1.5]
    assert taken == [1]


def animation(format_, frames):
    first, *others = [Image.fromarray(texture(seed, 32)) for seed in range(frames)]
    import io

    stream = io.BytesIO()
    first.save(stream, format_, save_all=True, append_images=others)
    return stream.getvalue()


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG", "AVIF"])
def test_animations_are_kept_as_their_first_frame_or_dropped(lens_registry, format_):
    def reason(data, **options):
        filter_ = lens_registry.build("filters", lens_registry.parse("filters", {"type": "decodable", **options}))
        return filter_.check(Candidate("x", data)).reason

    assert reason(animation(format_, 3)) is None
    assert reason(animation(format_, 3), animated="drop") == "it is animated"
    assert reason(animation(format_, 1), animated="drop") is None
    assert reason(b"GIF89a", animated="drop")


def test_pages_of_a_tiff_are_no_animation(lens_registry):
    config = lens_registry.parse("filters", {"type": "decodable", "animated": "drop"})
    assert lens_registry.build("filters", config).check(Candidate("x", animation("TIFF", 2))).reason is None


def test_avif_is_an_image_and_a_cut_one_is_not():
    data = encoded(texture(1, 64), "AVIF")
    item = Candidate("x.avif", data)
    assert (item.info.format, item.pixels().shape) == ("avif", (64, 64, 3))
