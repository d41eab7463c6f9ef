"""Two processes over gloo against one: the same steps, whatever the number of ranks."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lens_train.optim.muon import Muon
from lens_train.parallel.world import World
from train.parallel import ranks, two_ranks
from train.parallel.nano import Run

ALONE = World(device=torch.device("cpu"))
OPTIONS = {
    "adamw-fp64": {"optimizer": "adamw", "dtype": torch.float64},
    "muon-fp64": {"optimizer": "muon", "dtype": torch.float64},
    "muon-fp32": {"optimizer": "muon"},
    "replicated-fp64": {"optimizer": "muon", "dtype": torch.float64},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks left what they made."""
    folder = tmp_path_factory.mktemp("two")
    ranks.finish(ranks.start(two_ranks.__file__, 2, folder))
    return folder


@pytest.fixture(scope="module")
def made(folder):
    """The tensors of a name."""
    return lambda name: load_file(folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def found(folder):
    """What each of the two found."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def assert_alike(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.detach(), rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", OPTIONS)
def test_three_steps_are_those_of_one_process(made, found, name):
    run = Run(ALONE, **OPTIONS[name])
    norms = run.steps(0, 3)
    tolerance = 1e-9 if name.endswith("64") else 1e-4
    assert_alike(made(name), dict(run.model.named_parameters()), tolerance)
    assert_alike(made(f"{name}-ema"), run.ema.averages, tolerance)
    for own in found:
        assert own[f"{name} norms"] == pytest.approx(norms, rel=1e-9 if name.endswith("64") else 1e-5)


def test_each_rank_holds_half_unless_it_holds_a_copy(found):
    whole = sum(p.numel() for p in Run(ALONE).model.parameters())
    assert sum(own["muon-fp64 parameters"] for own in found) == whole
    assert max(own["muon-fp64 parameters"] for own in found) < 0.51 * whole
    assert [own["replicated-fp64 parameters"] for own in found] == [whole, whole]
    assert found[0]["replicated-fp64 placements"] == ["(Replicate(), Shard(dim=0))"]
    assert found[0]["muon-fp64 placements"] == ["(Shard(dim=0),)"]


def test_averages_are_swapped_in_and_out(made):
    assert_alike(made("swapped"), {k.partition("/")[2]: v for k, v in made("replicated-fp64-ema").items()}, 0)
    assert_alike(made("swapped-back"), made("replicated-fp64"), 0)


def test_the_whole_weights_are_on_rank_0(made, found):
    assert_alike(made("whole"), made("replicated-fp64"), 0)
    assert found[0]["whole"] == len(made("whole"))
    assert found[1]["whole"] == 0


def test_gradients_add_up_over_the_packs_of_a_step(made):
    run = Run(ALONE, dtype=torch.float64)
    run.steps(0, 2)
    assert_alike(made("accumulated"), dict(run.model.named_parameters()), 1e-9)


@pytest.mark.parametrize("policy", ["none", "selective", "full", "compiled"])
def test_recomputing_changes_no_gradient(made, policy):
    """With "compiled", full recomputation around blocks that are compiled."""
    run = Run(ALONE, dtype=torch.float64)
    run.backward(7)
    gradients = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}
    assert_alike(made(f"gradients-{policy}"), gradients, 1e-10)


def test_blocks_of_two_ranks_are_compiled(found):
    assert all(own["graphs"] > 0 for own in found)


def test_one_ranks_bad_gradient_is_seen_by_all(found):
    assert [own["norm is finite"] for own in found] == [False, False]


def test_a_hundred_steps_leave_nothing_behind(found):
    for own in found:
        (tensors, files, before), (tensors_after, files_after, after) = own["held"]
        assert 0 < tensors_after < tensors + 50  # one for each step would be a hundred
        assert files_after == files > 0
        assert after - before < 10  # the gradients of all steps would be 17 MB


def test_bfloat16_computes_and_float32_stays(made, found):
    for own in found:
        assert set(own["bf16 compute"]) == {"torch.bfloat16"}
        assert own["bf16 masters"] == own["bf16 gradients"] == ["torch.float32"]
    rough, exact = made("gradients-bf16"), made("gradients-fp32")
    whole = [torch.cat([each[name].flatten() for name in exact]) for each in (rough, exact)]
    assert torch.cosine_similarity(*whole, dim=0) > 0.999
    assert not torch.equal(*whole)


def test_muon_on_rows_of_two_ranks_is_muon(made):
    matrices = two_ranks.Matrices()
    optimizer = Muon(matrices.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        for parameter, gradient in zip(matrices.parameters(), matrices.gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert_alike(made("matrices"), dict(matrices.named_parameters()), 1e-4)


def test_ranks_gather_and_add_up(found):
    for own in found:
        assert own["lines"] == ["of 1"]
        assert own["sum"] == [3.0, 30.0]
    assert [own["kept"] for own in found] == [[1.0, 10.0], [2.0, 20.0]]
