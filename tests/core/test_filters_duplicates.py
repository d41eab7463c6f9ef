"""Exact and near duplicates: what is merged, what must not be, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
from PIL import Image

from core.textures import COPIES, candidate, encoded, texture
from lens_core.filters import statistics
from lens_core.filters.near_duplicates.index import MARK_BYTES, NearIndex, mark
from lens_core.images import Candidate, scale_to


@pytest.fixture
def build(lens_registry):
    def run(config):
        return lens_registry.build("filters", lens_registry.parse("filters", config))

    return run


def stream(filter_, items):
    """What the ingest stage does: judge, and tell what was kept."""
    reasons = []
    for item in items:
        verdict = filter_.check(item)
        reasons.append(verdict.reason)
        if verdict.reason is None:
            filter_.kept(item)
    return reasons


def small_mark(pixels):
    return mark(scale_to(pixels, 512))


def hash_of(mark_):
    return int.from_bytes(mark_[:8], "big")


def test_exact_duplicates_by_pixels_and_by_bytes(build):
    pixels = texture(0, 48)
    items = [
        Candidate("a.png", encoded(pixels)),
        Candidate("b.png", encoded(pixels, compress_level=0)),
        Candidate("c.webp", encoded(pixels, "WEBP", lossless=True)),
        Candidate("d.png", encoded(pixels)),
        Candidate("e.png", encoded(pixels.reshape(24, 96, 3))),
    ]
    assert stream(build("exact-duplicates"), items) == [
        None,
        "it has the same pixels as a.png",
        "it has the same pixels as a.png",
        "it has the same pixels as a.png",
        None,
    ]
    by_bytes = stream(build({"type": "exact-duplicates", "of": "bytes"}), items)
    assert by_bytes == [None, None, None, "it has the same bytes as a.png", None]


def test_the_hash_is_the_cosine_transforms(lens_registry):
    for seed in range(5):
        pixels = texture(seed)
        grey = np.asarray(Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.BOX), np.float64)
        low = scipy.fft.dctn(grey, type=2)[:8, :8].ravel()
        expected = int("".join("1" if value > np.median(low[1:]) else "0" for value in low), 2)
        assert statistics.perceptual_hash(pixels) == expected


def test_the_search_finds_every_hash_within_eleven_bits():
    rng = np.random.default_rng(0)
    index = NearIndex(11)
    hashes = [int(value) for value in rng.integers(0, 2**64, 300, dtype=np.uint64)]
    rest = bytes(MARK_BYTES - 8)
    for number, value in enumerate(hashes):
        index.add(value.to_bytes(8, "big") + rest, str(number))
    for flips in range(13):
        for number, value in enumerate(hashes[:100]):
            asked = value
            for bit in rng.choice(64, flips, replace=False):
                asked ^= 1 << int(bit)
            near = [other for other, known in enumerate(hashes) if (known ^ asked).bit_count() <= 11]
            assert index._candidates(asked.to_bytes(8, "big") + rest).tolist() == near
            assert (number in near) == (flips <= 11)


def test_the_index_grows():
    index = NearIndex(0)
    marks = [number.to_bytes(8, "big") + bytes([number % 251]) * (MARK_BYTES - 8) for number in range(3000)]
    for number, value in enumerate(marks):
        index.add(value, str(number))
    assert len(index) == 3000
    assert all(index.nearest(value) == (str(number), 0.0) for number, value in enumerate(marks))


def recall(copy, count):
    """Share of copies that are found among `count` originals, and that name the right one."""
    originals = [texture(seed) for seed in range(count)]
    index = NearIndex(11)
    for number, pixels in enumerate(originals):
        index.add(small_mark(pixels), str(number))
    found = [index.nearest(small_mark(copy(pixels))) for pixels in originals]
    return np.mean([hit is not None and hit[0] == str(number) and hit[1] <= 0.25 for number, hit in enumerate(found)])


def false_merges(count):
    index = NearIndex(11)
    merged = 0
    for seed in range(count):
        value = small_mark(texture(seed))
        hit = index.nearest(value)
        merged += hit is not None and hit[1] <= 0.25
        index.add(value, str(seed))
    return merged


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found(name):
    assert recall(COPIES[name], 40) >= 0.97


def test_different_textures_are_kept_apart():
    assert false_merges(1000) == 0


@pytest.mark.soak
@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_of_a_thousand(name):
    found = recall(COPIES[name], 1000)
    print(f"{name}: {found:.1%} of 1000")
    assert found >= 0.99


@pytest.mark.soak
def test_ten_thousand_different_textures_are_kept_apart():
    assert false_merges(10_000) == 0


def flat_pictures():
    """Pictures whose grey hashes say nothing: gradients and plain colours, all different to the eye."""
    ramp = np.linspace(0, 1, 256)[None, :, None]
    ends = [((250, 250, 250), (200, 200, 200)), ((40, 60, 200), (20, 30, 100)), ((60, 200, 40), (30, 100, 20))]
    for first, last in ends:
        yield np.broadcast_to(np.array(first) * (1 - ramp) + np.array(last) * ramp, (256, 256, 3)).astype(np.uint8)
    for colour in [(255, 255, 255), (0, 0, 0), (200, 30, 30), (30, 30, 200), (128, 128, 128), (30, 110, 30)]:
        yield np.broadcast_to(np.array(colour, np.uint8), (256, 256, 3)).copy()


def test_flat_pictures_do_not_merge_though_their_hashes_do(build):
    pictures = list(flat_pictures())
    hashes = [hash_of(small_mark(pixels)) for pixels in pictures]
    assert any((a ^ b).bit_count() <= 11 for i, a in enumerate(hashes) for b in hashes[:i])
    reasons = stream(build("near-duplicates"), [candidate(pixels, f"{n}") for n, pixels in enumerate(pictures)])
    assert reasons == [None] * len(pictures)
    again = stream(build("near-duplicates"), [candidate(pictures[0], "a"), candidate(pictures[0], "b")])
    assert again == [None, "it looks like a (difference 0.000 <= 0.25)"]


def test_the_same_drawing_in_another_colour_is_another_picture(build):
    pixels = texture(8)
    items = [candidate(pixels, "red"), candidate(np.ascontiguousarray(pixels[..., ::-1] // 2), "blue")]
    assert stream(build("near-duplicates"), items)[1] is None


def test_the_first_stays_whatever_the_order(build):
    pixels = texture(5)
    family = {"original": pixels, **{name: copy(pixels) for name, copy in COPIES.items()}}
    for names in (list(family), list(family)[::-1]):
        reasons = stream(build("near-duplicates"), [candidate(family[name], name) for name in names])
        assert reasons[0] is None
        assert all(reason and f"looks like {names[0]} " in reason for reason in reasons[1:])


def test_an_image_that_another_filter_dropped_is_nobodys_original(build):
    filter_ = build("near-duplicates")
    item = candidate(texture(6), "a")
    assert filter_.check(item).reason is None
    assert filter_.check(item).reason is None


def test_scores_say_how_near_it_was(build):
    filter_ = build("near-duplicates")
    first, copy = texture(7), COPIES["jpeg 30"](texture(7))
    assert filter_.check(candidate(first)).score is None
    filter_.kept(candidate(first, "first"))
    verdict = filter_.check(candidate(copy))
    assert 0 < verdict.score < verdict.threshold == 0.25
    strict = build({"type": "near-duplicates", "max": 0.001})
    strict.kept(candidate(first, "first"))
    assert strict.check(candidate(copy)).reason is None
    assert strict.check(candidate(copy)).score == verdict.score
