"""Permutations by counter: they are permutations, differ by key, and look like drawn ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lens_train.planning.permutation import key_of, lots, permute, subkeys

KEYS = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 3000), key=KEYS)
def test_every_place_goes_to_a_place_of_its_own(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(size=st.integers(1, 10**12), key=KEYS, data=st.data())
def test_one_place_alone_is_the_same_as_among_others(size, key, data):
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    together = permute(places, size, key)
    assert [int(permute(place, size, key)) for place in places] == together.tolist()
    assert (together >= 0).all()
    assert (together < size).all()


def test_keys_broadcast():
    keys = subkeys(5, 4)
    rows = permute(np.arange(10), 10, keys[:, None])
    assert rows.tolist() == [permute(np.arange(10), 10, key).tolist() for key in keys]


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_orders_are_equally_likely(size):
    rows = permute(np.arange(size), size, subkeys(key_of("orders", size), 24_000)[:, None])
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(counts) == math.factorial(size)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("size", [7, 10, 101])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (2, 5)])
def test_pairs_of_places_go_to_all_pairs_equally(size, first, second):
    keys = subkeys(key_of("pairs", size), 100 * size * size)
    one, two = permute(first, size, keys), permute(second, size, keys)
    pairs = np.bincount(one * size + two, minlength=size * size).reshape(size, size)
    assert (np.diag(pairs) == 0).all()
    assert scipy.stats.chisquare(pairs[~np.eye(size, dtype=bool)]).pvalue > 1e-3


@pytest.mark.parametrize("size", [1_000, 65_536])
def test_a_permutation_has_no_runs_and_no_trend(size):
    order = permute(np.arange(size), size, key_of("trend", size))
    # Of a random permutation: the rank correlation of neighbours is normal with variance 1/n, and about 1/n of the
    # differences of neighbours are 1.
    for lag in (1, 2, math.isqrt(size)):
        correlation = np.corrcoef(order[:-lag], order[lag:])[0, 1]
        assert abs(correlation) < 4 / math.sqrt(size)
    assert (np.diff(order) == 1).sum() < 8
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 4 / math.sqrt(size)


def test_keys_of_neighbouring_numbers_give_unrelated_permutations():
    size = 4096
    orders = permute(np.arange(size), size, np.arange(8, dtype=np.uint64)[:, None])
    correlations = np.corrcoef(orders)[~np.eye(8, dtype=bool)]
    assert np.abs(correlations).max() < 4.5 / math.sqrt(size)


def test_subkeys_are_splitmix64():
    # The generator's published test vector: seed 1234567.
    assert subkeys(1234567, 5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_keys_of_parts_are_their_own():
    assert key_of("a", 1) == key_of("a", 1)
    assert len({key_of("a", 1), key_of("a1"), key_of("a", "1"), key_of("a"), key_of(1, "a")}) == 5


@pytest.mark.parametrize("words", [np.arange(50_000), np.arange(50_000) << 40, subkeys(3, 50_000)])
def test_lots_are_uniform_whatever_the_words(words):
    assert scipy.stats.kstest(lots(words, 9), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(lots(words, 9), lots(words, 10))[0, 1]) < 4 / math.sqrt(len(words))
    assert lots(words[7], 9) == lots(words, 9)[7]


def test_bits_never_change():
    # A run goes on with the packs it began with, on every machine and under every version.
    assert permute(np.arange(10), 10, 42).tolist() == [1, 8, 2, 7, 4, 0, 9, 6, 5, 3]
    assert lots([1, 2], 42).tolist() == [0.5364924073123865, 0.5895455313311448]
