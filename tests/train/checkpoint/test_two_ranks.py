"""Checkpoints of two processes over gloo: exact, for any number of ranks, and whole or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lens_train.checkpoint.store import CheckpointStore
from lens_train.parallel.world import World
from train.checkpoint import two_ranks
from train.parallel import ranks
from train.parallel.nano import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks left what they made."""
    folder = tmp_path_factory.mktemp("saved")
    ranks.finish(ranks.start(two_ranks.__file__, 2, folder))
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each of the two found."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_a_first_run_has_nothing_to_go_on_from(found):
    assert [own["empty"] for own in found] == [None, None]


def test_what_is_saved_is_one_single_step_although_training_went_on(found):
    assert [own["loaded"] for own in found] == [True, True]
    assert [own["meta"] for own in found] == [{"step": 3}] * 2


def test_a_resumed_run_is_the_same_run(found):
    assert [own["resumed"] for own in found] == [True, True]
    assert [own["sharded as parameters are"] for own in found] == [True, True]


def test_two_to_one_to_two_ranks_keeps_every_bit(found):
    assert found[0]["on one"]
    assert [own["on two again"] for own in found] == [True, True]
    assert [own["as copies"] for own in found] == [True, True]


def test_copies_are_written_once(folder, found):
    def size(name):
        return sum(path.stat().st_size for path in (folder / name / "step-00000003").glob("*.safetensors"))

    assert "state.json" in found[0]["copies"]
    assert size("copies") == pytest.approx(size("one"), rel=0.05)


def test_a_process_alone_goes_on_from_two_ranks(folder):
    run = Run(World(device=torch.device("cpu")), seed=8)
    state = two_ranks.state_of(run)
    store = CheckpointStore(folder / "one", run.world)
    assert store.load_latest(state) == {"step": 3}
    assert two_ranks.same(state.tensors(), load_file(folder / "third.safetensors"))
    run.steps(3, 5)
    expected = load_file(folder / "fifth.safetensors")
    assert state.tensors().keys() == expected.keys()
    for name, tensor in state.tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_full_disk_of_one_rank_is_told_by_all_and_leaves_what_there_was(found):
    for own in found:
        assert own["full"].startswith("the checkpoint of step 4 is not saved: ")
        assert ".step-00000004.tmp/rank-00001.safetensors cannot be written: " in own["full"]
        assert "File too large" in own["full"]
        assert own["full"].endswith("step-00000003 is intact")
        assert "\n" not in own["full"]
        assert own["after full"] == "step-00000003"
        assert own["after room"] == "step-00000004"


def test_another_optimiser_is_told_by_the_first_tensor_that_differs(found):
    for own in found:
        assert "is of another model or optimiser" in own["another"]
        assert "it has no 'optimizer/transformer/transformer_blocks.0.attn.img_qkv.weight/exp_avg'" in own["another"]


def test_a_torn_file_is_named(found):
    for own in found:
        assert "step-00000004/rank-00001.safetensors cannot be read" in own["torn"]
