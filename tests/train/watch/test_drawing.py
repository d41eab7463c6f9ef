"""Two ranks share the pictures and the judging, and find what one finds, bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lens_train.parallel.world import World
from lens_train.watch.drawing import PICTURES
from train.parallel import ranks
from train.watch import two_ranks

COUNTS = (40, 33, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    ranks.finish(ranks.start(two_ranks.__file__, 2, folder))
    return folder


@pytest.fixture(scope="module")
def alone():
    return two_ranks.Model(World(device=torch.device("cpu")))


@pytest.fixture(scope="module")
def found(folder):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_pictures_are_those_of_one_rank_bit_for_bit(folder, alone):
    drawn = [load_file(folder / f"rank-{rank}.safetensors") for rank in range(2)]
    for count in COUNTS:
        pictures = alone.pictures(count)
        assert len(pictures) == count
        assert len({image.numpy().tobytes() for image in pictures}) == count
        for number, (image, asked) in enumerate(zip(pictures, two_ranks.requests(count), strict=True)):
            assert image.shape == (asked.height, asked.width, 3)
            for other in drawn:
                assert torch.equal(other[f"{count}/{number}"], image)
    assert sum(map(len, drawn)) == 2 * sum(COUNTS)


def test_each_rank_draws_its_share(found, alone):
    for place, count in enumerate(COUNTS):
        before = alone.calls
        alone.pictures(count)
        batches = -(-count // PICTURES)
        assert alone.calls - before == batches * two_ranks.STEPS
        # Of an odd number the last is drawn by both: sharded weights want them all.
        assert [own["calls"][place] for own in found] == [-(-batches // 2) * two_ranks.STEPS] * 2


def test_judging_is_shared_and_scores_are_the_same(found, alone):
    seen, judged = alone.scores()
    assert judged == 18
    assert [own["judged"] for own in found] == [9, 9]
    assert [own["seen"] for own in found] == [seen, seen]
    assert 0 < seen["score_single"] < 1
    assert 0 < seen["score_count"] < 1


def test_large_pictures_are_drawn_by_fewer_at_a_time(alone):
    large = [two_ranks.Request(height=256, width=256, index=i) for i in range(9)]  # 1024 tokens each
    small = [two_ranks.Request(height=16, width=16, index=i) for i in range(3)]
    sizes = [len(batch) for batch in alone.draw._batches([*large, *small])]
    assert sizes == [4, 4, 4]
    assert [len(batch) for batch in alone.draw._batches([two_ranks.Request(height=1024, width=1024)] * 2)] == [1, 1]
