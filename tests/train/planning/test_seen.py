"""Which samples did a step see?"""

from __future__ import annotations

import json

import pytest

from lens_core.errors import ConfigError
from lens_train.planning.ragged import RaggedPlan
from lens_train.planning.seen import seen, seen_lines
from train.planning.conftest import source_of


@pytest.fixture(scope="module")
def plan(layered):
    return RaggedPlan(source_of(layered), samples=5)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_ranks_share_what_one_sees(layered, plan, world):
    alone = list(seen(layered, plan, 40, packs_per_step=12))
    shared = list(seen(layered, plan, 40, packs_per_step=12, world=world))
    assert {(one.pack, one.key, one.caption) for one in shared} == {(one.pack, one.key, one.caption) for one in alone}
    assert len(shared) == len(alone)
    assert {one.pack for one in alone} == set(range(480, 492))
    assert all(one.rank == one.pack % world for one in shared)


def test_what_was_seen_is_what_the_pack_holds(layered, plan):
    first = plan.pack(36).samples
    shown = [one for one in seen(layered, plan, 3, packs_per_step=12, world=4) if one.pack == 36]
    assert [one.key for one in shown] == [layered.key(sample.number) for sample in first]
    texts = [None if sample.caption is None else layered.caption_text(sample.caption) for sample in first]
    assert [one.caption for one in shown] == texts
    assert [(one.height, one.width, one.text_tokens) for one in shown] == [
        (sample.height, sample.width, sample.text_tokens) for sample in first
    ]


def test_ranks_that_cannot_share(layered, plan):
    with pytest.raises(ConfigError, match="5 ranks cannot share 12 packs"):
        list(seen(layered, plan, 0, packs_per_step=12, world=5))


def test_lines(layered, plan):
    samples = list(seen(layered, plan, 3, packs_per_step=12, world=2))
    as_json = [json.loads(line) for line in seen_lines(iter(samples), as_json=True)]
    assert [(one["key"], one["caption"], one["rank"]) for one in as_json] == [
        (one.key, one.caption, one.rank) for one in samples
    ]
    lines = list(seen_lines(iter(samples), as_json=False))
    assert len(lines) == len(samples)
    for line, one in zip(lines, samples, strict=True):
        assert line.startswith(f"pack {one.pack} rank {one.rank}  {one.key[:12]}  {one.width}x{one.height}  ")
        assert line.endswith(one.caption or "(no caption)")
        assert "\n" not in line
    assert any(one.caption is None for one in samples)
