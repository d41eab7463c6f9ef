"""The ragged plan: pure, complete, balanced, within its buffers, and at one price however many samples there are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lens_core.errors import ConfigError
from lens_train.planning.manifest import Manifest
from lens_train.planning.packs import packs_of
from lens_train.planning.ragged import WINDOW, RaggedPlan
from train.planning.conftest import COSTS, mixed_rows, source_of, write_manifest

SIZES = [{"samples": 10}, {"tokens": 25_600}, {"flops": 3.3e9}]
by_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: next(iter(size)))


def numbers(plan, packs):
    return [sample.number for index in packs for sample in plan.pack(index).samples]


def epoch(plan, number):
    return range(number * plan.packs_per_epoch, (number + 1) * plan.packs_per_epoch)


@by_size
def test_a_pack_is_a_function_of_its_index(mixed, size):
    plan = RaggedPlan(source_of(mixed), **size)
    indices = [0, 3, 1, plan.packs_per_epoch - 1, plan.packs_per_epoch, 10**9, 7]
    once = [plan.pack(index) for index in indices]
    again = RaggedPlan(source_of(mixed), **size)
    assert [again.pack(index) for index in reversed(indices)] == once[::-1]
    assert [pack.index for pack in once] == indices


@by_size
def test_an_epoch_has_every_sample_once(mixed, size):
    plan = RaggedPlan(source_of(mixed), **size)
    for number in (0, 1, 5):
        assert sorted(numbers(plan, epoch(plan, number))) == list(range(len(mixed)))
        assert {sample.epoch for sample in plan.pack(epoch(plan, number)[-1]).samples} == {number}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data(), count=st.integers(1, 600))
def test_any_number_of_samples_in_packs_of_any_size(mixed, data, count, tmp_path_factory):
    manifest = write_manifest(tmp_path_factory.mktemp("any") / "manifest", mixed_rows(count, seed=count))
    size = data.draw(
        st.one_of(
            st.builds(lambda samples: {"samples": samples}, st.integers(1, 700)),
            st.builds(lambda tokens: {"tokens": tokens}, st.integers(500, 200_000)),
        )
    )
    plan = RaggedPlan(source_of(manifest), **size)
    packs = [plan.pack(index) for index in epoch(plan, data.draw(st.integers(0, 3)))]
    counts = [len(pack.samples) for pack in packs]
    assert sorted(sample.number for pack in packs for sample in pack.samples) == list(range(count))
    assert min(counts) > 0
    assert max(counts) <= size.get("samples", count)


def test_equal_images_without_captions_are_as_many_in_each_pack(tmp_path):
    manifest = write_manifest(tmp_path / "manifest", [(64, 64, [])] * 1000)
    for samples, expected in ((64, {62, 63}), (50, {50}), (1, {1}), (1000, {1000}), (5000, {1000})):
        plan = RaggedPlan(source_of(manifest), samples=samples)
        packs = [plan.pack(index) for index in epoch(plan, 0)]
        assert {len(pack.samples) for pack in packs} == expected
        assert {(pack.text_tokens, sample.caption) for pack in packs for sample in pack.samples} == {(0, None)}


@pytest.mark.parametrize("world", range(1, 9))
def test_ranks_share_every_step(world):
    for step in (0, 3):
        shared = [list(packs_of(step, rank, world, 840)) for rank in range(world)]
        assert sorted(index for packs in shared for index in packs) == list(range(840 * step, 840 * (step + 1)))
        # what is worked on at a time lies together
        for together in zip(*shared, strict=True):
            assert list(together) == list(range(together[0], together[0] + world))


def test_a_change_of_the_ranks_in_mid_epoch_repeats_and_loses_nothing(mixed):
    plan = RaggedPlan(source_of(mixed), samples=10)
    worlds = [8, 4, 6, 1, 3, 2, 12, 24]
    steps = -(-plan.packs_per_epoch // 24)
    indices = [
        index
        for step in range(steps)
        for world in [worlds[step % len(worlds)]]
        for rank in range(world)
        for index in packs_of(step, rank, world, 24)
    ]
    assert sorted(indices) == list(range(24 * steps))
    assert sorted(numbers(plan, sorted(indices)[: plan.packs_per_epoch])) == list(range(len(mixed)))


def test_ranks_that_cannot_share():
    with pytest.raises(ConfigError, match=r"3 ranks cannot share 64 packs per step evenly; .* such as 66$"):
        packs_of(0, 0, 3, 64)


@pytest.mark.parametrize(("size", "spread", "most"), [(SIZES[0], 0.01, 0.02), (SIZES[1], 0.015, 0.03)])
def test_packs_cost_the_same(mixed, size, spread, most):
    plan = RaggedPlan(source_of(mixed), **size)
    packs = [plan.pack(index) for index in range(2 * plan.packs_per_epoch)]
    for measure in ("flops", "image_tokens", "text_tokens"):
        loads = np.array([getattr(pack, measure) for pack in packs])
        off = np.abs(loads / loads.mean() - 1)
        assert off[:-1].mean() < spread, measure
        assert np.percentile(off, 99) < most * (1 if measure != "text_tokens" else 3), measure


def test_the_mean_pack_is_as_large_as_asked_for(mixed):
    by_tokens = RaggedPlan(source_of(mixed), tokens=25_600)
    tokens = [by_tokens.pack(index).image_tokens + by_tokens.pack(index).text_tokens for index in epoch(by_tokens, 0)]
    assert np.mean(tokens) == pytest.approx(25_600, rel=0.02)
    assert np.mean(tokens) < 25_700
    by_flops = RaggedPlan(source_of(mixed), flops=3.3e9)
    assert np.mean([by_flops.pack(index).flops for index in epoch(by_flops, 0)]) == pytest.approx(3.3e9, rel=0.02)


@by_size
def test_every_pack_fits_the_buffers_and_fills_them(mixed, size):
    plan = RaggedPlan(source_of(mixed), **size)
    image, text = plan.capacity
    assert image % 16 == text % 16 == 0
    packs = [plan.pack(index) for index in range(6 * plan.packs_per_epoch)]
    assert max(pack.image_tokens for pack in packs) <= image
    assert max(pack.text_tokens for pack in packs) <= text
    assert np.mean([pack.image_tokens + pack.text_tokens for pack in packs]) > 0.96 * (image + text)


def test_flops_are_those_of_the_samples(mixed):
    pack = RaggedPlan(source_of(mixed), tokens=25_600).pack(3)
    assert pack.flops == pytest.approx(sum(COSTS(s.image_tokens, s.text_tokens) for s in pack.samples))
    for sample in pack.samples:
        assert (sample.height, sample.width) == (mixed.height[sample.number], mixed.width[sample.number])
        assert sample.image_tokens == (sample.height // 16) * (sample.width // 16)


class Counted(Manifest):
    """A manifest that counts the records that are read."""

    read = 0

    def take(self, column, rows):
        self.read += len(rows)
        return super().take(column, rows)


@pytest.mark.parametrize("count", [3_000, 60_000])
def test_a_pack_is_found_without_a_scan(tmp_path, count):
    write_manifest(tmp_path / "manifest", mixed_rows(count))
    manifest = Counted(tmp_path / "manifest")
    plan = RaggedPlan(source_of(manifest), tokens=25_600)
    manifest.read = 0
    plan.pack(10**7)
    # A sample is a record of the ranking, one of the samples and one of the captions.
    assert 2.8 * WINDOW < manifest.read < 3 * 2.1 * WINDOW


def test_every_sample_comes_at_every_time_of_an_epoch(mixed):
    plan = RaggedPlan(source_of(mixed), samples=10)
    times = np.zeros((3, 10))
    for number in range(30):
        for index in epoch(plan, number):
            when = 10 * (index % plan.packs_per_epoch) // plan.packs_per_epoch
            for sample in plan.pack(index).samples:
                if sample.number < 3:
                    times[sample.number, when] += 1
    assert scipy.stats.chisquare(times.sum(0)).pvalue > 1e-3


def test_epochs_and_seeds_mix_differently(mixed):
    plan, other = RaggedPlan(source_of(mixed), samples=10), RaggedPlan(source_of(mixed, seed=8), samples=10)
    first = [frozenset(numbers(plan, [index])) for index in epoch(plan, 0)]
    for packs in (epoch(plan, 1), epoch(other, 0)):
        later = [frozenset(numbers(other if packs == epoch(other, 0) else plan, [index])) for index in packs]
        assert not set(first) & set(later)
        # Of the pairs that shared a pack, hardly any share one again.
        pairs = [len(one & two) for one in first for two in later]
        assert np.mean(np.array(pairs) > 2) < 0.01


def test_a_window_is_a_picture_of_the_whole(mixed):
    plan = RaggedPlan(source_of(mixed), samples=10)
    windows = plan.packs_per_epoch // plan._packs
    assert windows > 4
    in_one = Counter((s.height, s.width) for index in range(plan._packs) for s in plan.pack(index).samples)
    # A size fills so many strata, but for the first and the last of them.
    for height, width, count in mixed.sizes:
        assert abs(in_one[height, width] - count / windows) <= 2


def test_the_fingerprint_covers_everything(mixed, layered):
    changes = [{}, {"seed": 8}, {"caption_dropout": 0.2}, {"stride": 8}]
    prints = [RaggedPlan(source_of(mixed, **change), samples=10).fingerprint for change in changes]
    prints += [RaggedPlan(source_of(mixed), **size).fingerprint for size in ({"samples": 11}, {"tokens": 10})]
    prints += [RaggedPlan(source_of(layered), samples=10).fingerprint]
    assert len(set(prints)) == len(prints)
    assert RaggedPlan(source_of(mixed), samples=10).fingerprint == prints[0]


def test_packs_never_change(tmp_path):
    # A run goes on with the packs it began with. Where they are to be others, "ragged 1" becomes "ragged 2".
    manifest = write_manifest(tmp_path / "manifest", mixed_rows(500, captions=2, seed=4))
    plan = RaggedPlan(source_of(manifest), samples=6)
    assert numbers(plan, [5]) == [339, 219, 228, 250, 138]
    assert numbers(plan, [1000]) == [185, 358, 172, 60, 211, 253]
