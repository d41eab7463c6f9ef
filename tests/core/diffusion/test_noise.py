"""Noise by counter, against the format's own words: the generator is written out here once more."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
import torch

from lens_core.diffusion import noise, uniform

WORD = 2**64


def philox_4x64(key, counter):
    """Ten rounds of Philox 4x64 (Salmon et al. 2011, section 3.3): four words from two words of key and four."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, WORD)
        high1, low1 = divmod(0xCA5A826395121157 * c2, WORD)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % WORD, (k1 + 0xBB67AE8584CAA73B) % WORD
    return [c0, c1, c2, c3]


def words(seed, index, count):
    """docs/reference/formats.md, "Noise", step 1."""
    parts = [seed, *index] if isinstance(index, tuple) else [seed, index]
    text = "[" + ",".join(map(json.dumps, parts)) + "]"  # ASCII: other letters are escaped
    digest = hashlib.sha256(text.encode("ascii")).digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")]
    stream = [word for block in range(1, count // 4 + 2) for word in philox_4x64(key, [block, 0, 0, 0])]
    return stream[:count]


def uniforms(seed, index, count):
    """Step 2."""
    return [(word // 2**11 + 0.5) * 2.0**-53 for word in words(seed, index, count)]


def normals(seed, index, count):
    """Step 3."""
    half = -(-count // 2)
    u = uniforms(seed, index, 2 * half)
    polar = [(math.sqrt(-2 * math.log(u[i])), 2 * math.pi * u[half + i]) for i in range(half)]
    return [r * math.cos(a) for r, a in polar] + [r * math.sin(a) for r, a in polar][: count - half]


STREAMS = [
    (0, 0),
    (7, 3),
    (7, (3,)),
    (-1, "a"),
    (2**80, ("epoch", 12, "0f" * 32)),
    (3, "grün, 猫"),
    (0, ()),
]


@pytest.mark.parametrize(
    ("counter", "key", "output"),
    [
        ([0] * 4, [0] * 2, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (
            [WORD - 1] * 4,
            [WORD - 1] * 2,
            "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
        ),
        (
            [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
            [0x452821E638D01377, 0xBE5466CF34E90C6C],
            "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
        ),
    ],
)
def test_our_philox_passes_the_known_answers_of_its_authors(counter, key, output):
    assert [f"{word:016x}" for word in philox_4x64(key, counter)] == output.split()


@pytest.mark.parametrize(("seed", "index"), STREAMS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 2, 5, 64])
def test_numbers_are_those_of_the_format(seed, index, count):
    assert uniform(seed, index, (count,)).tolist() == uniforms(seed, index, count)
    # The last bit of a float64 sine is the C library's affair; a float32 rarely sees it.
    np.testing.assert_allclose(noise(seed, index, (count,)).numpy(), normals(seed, index, count), rtol=1.3e-7)


def test_fixed_values():
    """Written down once, so that no change of library or platform changes a picture unseen."""
    assert uniform(0, 0, (2,)).tolist() == [0.4143725079087141, 0.7485730749331327]
    assert uniform(7, (0, "cat"), (2,)).tolist() == [0.039926328496887764, 0.812169004152957]
    for arguments, known in (
        ((0, 0), [-0.310703605, 0.292899728, -1.29052043, 0.702412009]),
        ((7, 3), [-0.44336015, -0.227105021, 0.680556059, 0.0350959264]),
        ((7, (0, "cat")), [0.8266626, 0.195109412, -0.0335766077, -2.39959741, -0.614838183]),
        ((20260523, "a"), [1.18599272, -2.9789989, 0.264349997]),
    ):
        assert torch.equal(noise(*arguments, (len(known),)), torch.tensor(known)), arguments


def test_dtypes():
    assert noise(0, 0, (3,)).dtype == torch.float32
    assert uniform(0, 0, (3,)).dtype == torch.float64


def test_shape_only_lays_the_numbers_out():
    flat = noise(1, 2, (24,))
    assert torch.equal(noise(1, 2, (2, 3, 4)), flat.view(2, 3, 4))
    assert torch.equal(noise(1, 2, [4, 6]), flat.view(4, 6))
    assert noise(1, 2, ()).shape == ()
    assert noise(1, 2, (0, 5)).shape == (0, 5)


def test_uniform_numbers_go_on_where_a_shorter_draw_ends():
    assert torch.equal(uniform(1, 2, (100,))[:7], uniform(1, 2, (7,)))


def test_odd_draw_is_an_even_one_without_its_last():
    assert torch.equal(noise(1, 2, (7,)), noise(1, 2, (8,))[:7])


def test_streams_are_distinct():
    indices = [0, 1, "1", (1, 0), (0, 1), 10, (1, "0"), "1,0", "a", "b", ("a", "b"), "ab", ("ab", ""), (), "", -1]
    first = {(seed, index): float(uniform(seed, index, (1,))) for seed in (0, 1, -1) for index in indices}
    assert len(set(first.values())) == len(first)


def test_the_global_generators_play_no_part():
    before = torch.get_rng_state()
    torch.manual_seed(1)
    first = noise(0, 0, (4,))
    torch.manual_seed(2)
    assert torch.equal(noise(0, 0, (4,)), first)
    torch.set_rng_state(before)


@pytest.fixture(scope="module")
def million():
    return noise(20260523, "moments", (1_000_000,)).double()


def test_moments_are_those_of_the_normal_distribution(million):
    """Within five standard errors."""
    assert abs(float(million.mean())) < 5 / 1000
    assert abs(float(million.square().mean()) - 1) < 5 * math.sqrt(2) / 1000
    assert abs(float((million**3).mean())) < 5 * math.sqrt(15) / 1000
    assert abs(float((million**4).mean()) - 3) < 5 * math.sqrt(96) / 1000
    assert 4.5 < float(million.abs().max()) < 6.5


def test_numbers_are_independent(million):
    """The cosine half and the sine half share their radii: neither they nor their squares are correlated."""
    pairs = {"halves": million.view(2, -1), "neighbours": million.view(-1, 2).T}
    for name, (a, b) in pairs.items():
        assert abs(float((a * b).mean())) < 5 / math.sqrt(len(a)), name
        squares = ((a.square() - 1) * (b.square() - 1)).mean()
        assert abs(float(squares)) < 5 * 2 / math.sqrt(len(a)), name


def test_streams_are_independent():
    first, second = noise(5, 0, (100_000,)), noise(5, 1, (100_000,))
    assert abs(float((first * second).mean())) < 5 / math.sqrt(100_000)


def test_uniform_numbers_fill_the_open_interval():
    u = uniform(4, "u", (1_000_000,))
    assert 0 < float(u.min()) < 1e-5
    assert 1 - 1e-5 < float(u.max()) < 1
    counts = torch.histc(u.float(), 10, 0, 1)
    assert (counts / 100_000 - 1).abs().max() < 0.02
