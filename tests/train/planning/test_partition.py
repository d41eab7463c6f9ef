"""The split of samples into packs: nothing lost, better than any single exchange, far better than the dealing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_train.planning import partition as module
from lens_train.planning.partition import partition


def loads_of(count, seed=0, spread=(16, 4096)):
    lots = np.random.default_rng(seed)
    image, text = lots.integers(*spread, count), lots.integers(0, 300, count)
    return np.stack([1e5 * (image + text) + 20.0 * (image + text) ** 2, image, text], axis=1).astype(float)


def relative(table, loads):
    """Deviation of each pack from the mean, in each measure."""
    totals = np.vstack([loads, np.zeros(loads.shape[1])])[table].sum(1)
    return totals / totals.mean(0) - 1


@given(count=st.integers(1, 300), packs=st.integers(1, 40), seed=st.integers(0, 9), text=st.booleans())
def test_every_sample_is_in_one_pack_and_no_pack_is_empty(count, packs, seed, text):
    packs = min(packs, count)
    loads = loads_of(count, seed)
    loads[:, 2] *= text
    table = partition(loads, packs, key=seed)
    assert table.shape == (packs, -(-count // packs))
    assert sorted(table[table >= 0].tolist()) == list(range(count))
    assert (table >= 0).any(1).all()


def test_balanced_in_all_measures():
    loads = loads_of(400, spread=(1024, 4096))
    off = relative(partition(loads, 40, key=3), loads)
    assert np.abs(off).max() < 0.03
    assert off.std() < 0.006


def test_no_single_exchange_helps():
    for seed in range(5):
        loads = loads_of(20, seed)
        table = partition(loads, 4, key=seed)
        best = np.square(relative(table, loads)).sum()
        for (one, two), place, its_place in itertools.product(itertools.combinations(range(4), 2), range(5), range(5)):
            other = table.copy()
            other[one, place], other[two, its_place] = table[two, its_place], table[one, place]
            assert np.square(relative(other, loads)).sum() > best - 1e-9


def test_large_packs_are_tried_in_parts():
    loads = loads_of(4096, spread=(16, 64))
    table = partition(loads, 4, key=1)
    assert sorted(table.ravel().tolist()) == list(range(4096))
    assert table.shape[1] > module.TRIED
    assert np.abs(relative(table, loads)).max() < 0.005


def test_equal_samples_are_dealt_out_at_random():
    loads = np.ones((12, 3))
    together = np.zeros((12, 12))
    for key in range(3000):
        for members in partition(loads, 3, key=key):
            together[np.ix_(members, members)] += 1
    pairs = together[~np.eye(12, dtype=bool)]
    # 3 of the other 11 are in a sample's pack.
    assert pairs.min() > 3000 * 3 / 11 * 0.85
    assert pairs.max() < 3000 * 3 / 11 * 1.15


def test_the_key_decides():
    loads = loads_of(100)
    assert (partition(loads, 10, key=1) == partition(loads, 10, key=1)).all()
    assert (partition(loads, 10, key=1) != partition(loads, 10, key=2)).any()


@pytest.mark.parametrize("column", [0, 2])
def test_a_measure_that_weighs_nothing(column):
    loads = loads_of(30)
    loads[:, column] = 0
    table = partition(loads, 5, key=0)
    assert sorted(table.ravel().tolist()) == list(range(30))
