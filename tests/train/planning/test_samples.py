"""Captions as an epoch has them, and sizes that do not fit the autoencoder."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from lens_core.errors import ConfigError
from lens_train.planning.buckets import BucketPlan
from lens_train.planning.ragged import RaggedPlan
from train.planning.conftest import mixed_rows, source_of, write_manifest


def captions(plan, epoch):
    packs = range(epoch * plan.packs_per_epoch, (epoch + 1) * plan.packs_per_epoch)
    return {sample.number: sample.caption for index in packs for sample in plan.pack(index).samples}


def test_each_caption_is_as_likely(layered):
    plan = RaggedPlan(source_of(layered, caption_dropout=0.0), samples=10)
    firsts = np.array([layered.captions_of(number)[0] for number in range(2000)])
    chosen = [np.array([row for _, row in sorted(captions(plan, epoch).items())]) - firsts for epoch in range(2)]
    for epoch in chosen:
        assert scipy.stats.chisquare(np.bincount(epoch, minlength=3)).pvalue > 1e-3
    # and in a later epoch it is another as often as lots say
    table = np.zeros((3, 3))
    np.add.at(table, (chosen[0], chosen[1]), 1)
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_the_choice_does_not_depend_on_the_plan(layered):
    source = source_of(layered, caption_dropout=0.0)
    plans = [RaggedPlan(source, samples=10), RaggedPlan(source, tokens=9_000), BucketPlan(source, {512: 24, 1024: 6})]
    assert captions(plans[0], 2) == captions(plans[1], 2) == captions(plans[2], 2)


def test_text_tokens_are_those_of_the_caption(layered):
    plan = RaggedPlan(source_of(layered), samples=10)
    samples = [sample for index in range(plan.packs_per_epoch) for sample in plan.pack(index).samples]
    for sample in samples:
        if sample.caption is None:
            assert sample.text_tokens == 0
        else:
            assert sample.caption in layered.captions_of(sample.number)
            assert sample.text_tokens == layered.caption_tokens[sample.caption] >= 20


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35])
def test_a_share_goes_without_its_caption(mixed, share):
    plan = RaggedPlan(source_of(mixed, caption_dropout=share), samples=10)
    epochs = 12
    without = np.zeros(len(mixed))
    for epoch in range(epochs):
        for number, caption in captions(plan, epoch).items():
            without[number] += caption is None
    assert without.sum() == pytest.approx(epochs * len(mixed) * share, rel=0.01)
    # as often as lots of its own would have it: the variance over samples is the binomial one
    assert without.var() == pytest.approx(epochs * share * (1 - share), rel=0.2)
    # of small images and of large ones, of long captions and of short ones
    ranked = without[mixed.ranking]
    thirds = [part.mean() for part in np.array_split(ranked, 3)]
    assert thirds == pytest.approx([epochs * share] * 3, rel=0.08)


def test_samples_without_a_caption_are_trained_without(tmp_path):
    rows = [(512, 512, [("x", 50)] if number % 2 else []) for number in range(60)]
    plan = RaggedPlan(source_of(write_manifest(tmp_path / "manifest", rows), caption_dropout=0.0), samples=6)
    assert all((caption is None) == (number % 2 == 0) for number, caption in captions(plan, 0).items())


def test_a_size_that_is_no_multiple(tmp_path):
    manifest = write_manifest(tmp_path / "manifest", [*mixed_rows(3), (40, 64, [])])
    with pytest.raises(ConfigError, match=r"has images of 64x40, no multiple of 16, the autoencoder's stride"):
        source_of(manifest)
    assert source_of(manifest, stride=8).stride == 8
