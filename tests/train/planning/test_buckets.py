"""The plan of the paper: packs of one size, as many as the base says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import scipy.stats

from lens_train.planning.buckets import BucketPlan
from train.planning.conftest import source_of

PAPER = {512: 24, 768: 10, 1024: 6}


def epoch_of(plan, number):
    return [plan.pack(number * plan.packs_per_epoch + index) for index in range(plan.packs_per_epoch)]


def test_packs_are_of_one_size_and_full(mixed):
    plan = BucketPlan(source_of(mixed), PAPER)
    smaller = Counter()
    for pack in epoch_of(plan, 0):
        ((height, width),) = {(sample.height, sample.width) for sample in pack.samples}
        full = PAPER[min(PAPER, key=lambda base: abs(base - (height * width) ** 0.5))]
        assert 0 < len(pack.samples) <= full
        smaller[height, width] += len(pack.samples) < full
    assert len(smaller) == 27
    assert max(smaller.values()) == 1
    assert plan.capacity is None


def test_an_epoch_has_every_sample_once_and_another_order(mixed):
    plan = BucketPlan(source_of(mixed), PAPER)
    orders = [[sample.number for pack in epoch_of(plan, number) for sample in pack.samples] for number in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(mixed)))
    assert orders[0] != orders[1]
    first, second = ([frozenset(s.number for s in pack.samples) for pack in epoch_of(plan, n)] for n in (0, 1))
    assert len(set(first) & set(second)) < 3


def test_a_pack_is_a_function_of_its_index(mixed):
    indices = [5, 0, 10**6, 17]
    plans = [BucketPlan(source_of(mixed), PAPER) for _ in range(2)]
    assert [plans[0].pack(index) for index in indices] == [plans[1].pack(index) for index in indices[::-1]][::-1]
    assert plans[0].fingerprint == plans[1].fingerprint
    others = [BucketPlan(source_of(mixed, seed=9), PAPER), BucketPlan(source_of(mixed), PAPER | {512: 23})]
    assert len({plan.fingerprint for plan in [plans[0], *others]}) == 3


def test_sizes_are_mixed_over_the_epoch(mixed):
    plan = BucketPlan(source_of(mixed), PAPER)
    small = np.array([len(pack.samples) > 10 for pack in epoch_of(plan, 0)])
    halves = np.array([[part.sum(), (~part).sum()] for part in np.array_split(small, 2)])
    assert scipy.stats.chi2_contingency(halves).pvalue > 1e-3
