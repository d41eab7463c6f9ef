"""At which size an image is trained: the tables, and the draw of a base."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lens_core.diffusion.resolutions import RESOLUTIONS, closest_size
from lens_core.errors import ConfigError
from lens_train.planning.sizes import SizeRule, size_table
from train.planning.conftest import key_of_number

BASES = [256, 512, 768, 1024, 1440]
SIDES = st.integers(1, 10_000)


@pytest.mark.parametrize("base", [1024, 1440])
def test_published_tables(base):
    assert list(size_table(base, 16)) == list(RESOLUTIONS[base].values())


@pytest.mark.parametrize(
    ("base", "multiple"), [(base, multiple) for base in BASES for multiple in (8, 16, 32) if base >= 16 * multiple]
)
def test_nine_ratios_of_about_one_area(base, multiple):
    table = size_table(base, multiple)
    assert len(set(table)) == 9
    assert table[4] == (base, base)
    assert [(width, height) for height, width in table[::-1]] == list(table)
    ratios = [width / height for height, width in table]
    assert ratios == sorted(ratios)
    for (height, width), ratio in zip(table, (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1, 4 / 3, 3 / 2, 16 / 9, 2), strict=True):
        assert height % multiple == width % multiple == 0
        assert height * width == pytest.approx(base * base, rel=0.08)
        assert width / height == pytest.approx(ratio, rel=0.07)


def test_the_27_buckets_of_the_paper():
    sizes = [size for base in (512, 768, 1024) for size in size_table(base, 16)]
    assert len(set(sizes)) == 27
    # Half of the published table fits the grid exactly.
    assert size_table(512, 16) == tuple((height // 2, width // 2) for height, width in size_table(1024, 16))


def test_a_base_that_is_too_small():
    with pytest.raises(ConfigError, match="the base 64 is too small for sizes in multiples of 16"):
        size_table(64, 16)


@given(height=SIDES, width=SIDES, number=st.integers(0, 100))
def test_never_scaled_up_where_a_smaller_base_is_reached(height, width, number):
    rule = SizeRule({512: 1, 768: 1, 1024: 2}, multiple=16, seed=3)
    tall, wide = size = rule(height, width, key_of_number(number))
    small = min(size_table(512, 16), key=lambda size: abs(math.log(size[0] * width / (size[1] * height))))
    if small[0] <= height and small[1] <= width:
        assert tall <= height
        assert wide <= width
    else:
        assert size == small


@given(height=st.integers(2500, 5000), width=st.integers(2500, 5000))
def test_the_closest_ratio(height, width):
    rule = SizeRule({1024: 1}, multiple=16, seed=3)
    assert rule(height, width, key_of_number(1)) == closest_size(width / height, 1024)


def test_bases_by_weight():
    weights = {512: 1, 768: 2.5, 1024: 0.5}
    rule = SizeRule(weights, multiple=16, seed=3)
    keys = [key_of_number(number) for number in range(8000)]
    sizes = [rule(4000, 4000, key) for key in keys]
    counts = Counter(sizes)
    expected = [8000 * weight / 4 for weight in weights.values()]
    assert scipy.stats.chisquare([counts[base, base] for base in weights], expected).pvalue > 1e-3
    assert sizes == [SizeRule(weights, multiple=16, seed=3)(4000, 4000, key) for key in keys]
    assert sizes != [SizeRule(weights, multiple=16, seed=4)(4000, 4000, key) for key in keys]
    # A picture that does not reach 1024 is drawn among the rest.
    counts = Counter(rule(800, 800, key) for key in keys)
    assert scipy.stats.chisquare([counts[512, 512], counts[768, 768]], [8000 / 3.5, 20_000 / 3.5]).pvalue > 1e-3
