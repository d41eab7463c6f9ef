"""The table of sizes, and how people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_core.diffusion.resolutions import BASES, RATIOS, RESOLUTIONS, closest_size, parse_size
from lens_core.errors import ConfigError

PUBLISHED = """
1:2   1472×736   2080×1040
9:16  1376×768   1936×1088
2:3   1248×832   1760×1168
3:4   1152×864   1616×1216
1:1   1024×1024  1440×1440
"""
"""Height × width by W:H, as lens-facts 4.5 prints them."""


def test_table_is_the_published_one():
    rows = [line.split() for line in PUBLISHED.split("\n") if line]
    assert len(rows) == 5
    for ratio, *sizes in rows:
        for base, size in zip((1024, 1440), sizes, strict=True):
            height, width = map(int, size.split("×"))
            assert RESOLUTIONS[base][ratio] == (height, width)
            assert RESOLUTIONS[base][":".join(reversed(ratio.split(":")))] == (width, height)
    assert BASES == (1024, 1440)
    assert RATIOS == ("1:2", "9:16", "2:3", "3:4", "1:1", "4:3", "3:2", "16:9", "2:1")
    assert all(tuple(sizes) == RATIOS for sizes in RESOLUTIONS.values())


@pytest.mark.parametrize(("base", "fewest", "most"), [(1024, 3888, 4232), (1440, 7676, 8450)])
def test_tokens_of_a_base(base, fewest, most):
    """The ranges that lens-facts 4.2 states; every side is a multiple of 16."""
    tokens = [h // 16 * (w // 16) for h, w in RESOLUTIONS[base].values()]
    assert (min(tokens), max(tokens)) == (fewest, most)
    assert all(h % 16 == w % 16 == 0 for h, w in RESOLUTIONS[base].values())


def test_every_ratio_finds_its_own_size():
    for base, sizes in RESOLUTIONS.items():
        for ratio, size in sizes.items():
            wide, tall = map(int, ratio.split(":"))
            assert closest_size(wide / tall, base) == size
            assert parse_size(ratio, base=base) == size
            assert parse_size(f"{ratio}@{base}") == size


@settings(deadline=None)
@given(st.floats(0.001, 1000), st.sampled_from(BASES))
def test_closest_is_closest_and_turns_with_the_image(ratio, base):
    height, width = closest_size(ratio, base)

    def distance(size):
        return abs(math.log(ratio) - math.log(size[1] / size[0]))

    assert distance((height, width)) == pytest.approx(min(map(distance, RESOLUTIONS[base].values())))
    turned = closest_size(1 / ratio, base)
    assert distance(turned[::-1]) == pytest.approx(distance((height, width)))


@pytest.mark.parametrize(
    ("ratio", "size"), [(0.01, (1472, 736)), (99, (736, 1472)), (1.1, (1024, 1024)), (1.25, (864, 1152))]
)
def test_closest(ratio, size):
    assert closest_size(ratio) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024x768", (768, 1024)),
        ("1664×1248", (1248, 1664)),
        (" 16 X 32 ", (32, 16)),
        ("16:9", (768, 1376)),
        ("9:16", (1376, 768)),
        ("32:18", (768, 1376)),
        ("1:1@1440", (1440, 1440)),
        ("2:1 @ 1440", (1040, 2080)),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


def test_multiple_is_the_strides():
    assert parse_size("36x20", multiple=4) == (20, 36)
    with pytest.raises(ConfigError, match="must be multiples of 8, such as 40x24"):
        parse_size("42x26", multiple=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1000x1024", r"the size '1000x1024': width and height must be multiples of 16, such as 992x1024"),
        ("0x16", r"must be multiples of 16, such as 16x16"),
        ("21:9", r"'21:9' is not one of the ratios 1:2, .*2:1; other shapes are written WIDTHxHEIGHT"),
        ("1:0", r"'1:0' is not one of the ratios"),
        ("1:1@512", r"no table of sizes for the base 512; the bases are 1024, 1440"),
        ("big", r"'big' is neither WIDTHxHEIGHT, such as 1024x768, nor a ratio, such as 16:9"),
        ("1024", "is neither"),
        ("", "is neither"),
        ("-16x16", "is neither"),
        ("16x16x16", "is neither"),
        ("１６x16", "is neither"),
        ("123456x16", "is neither"),
    ],
)
def test_bad_sizes_say_why_in_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_bad_ratios(ratio):
    with pytest.raises(ConfigError, match="an aspect ratio is a positive number"):
        closest_size(ratio)


def test_bad_base():
    with pytest.raises(ConfigError, match="the bases are 1024, 1440"):
        closest_size(1.0, 512)
