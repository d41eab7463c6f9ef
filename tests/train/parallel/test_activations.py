"""What is computed again, by counting products; and what a run may ask for."""

from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from pydantic import ValidationError
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lens_core.diffusion import LensTransformer2DModel
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.fixed_size import pad_to
from lens_train.parallel.shard import compute_dtype
from lens_train.parallel.world import World
from train.parallel.nano import Run, denoiser, loss_of, pack, samples

ALONE = World(device=torch.device("cpu"))


def flops(policy):
    run = Run(ALONE, activation_checkpointing=policy)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = loss_of(run.model, *pack(samples(0, torch.float32)))
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward


def test_selective_computes_no_product_again_and_full_computes_all():
    forward, backward = flops("none")
    assert flops("selective") == (forward, backward)
    again = flops("full")[1] - backward
    # All but the projections around the blocks.
    assert 0.9 * forward < again < forward


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_parameters_keep_their_names(policy):
    run = Run(ALONE, activation_checkpointing=policy, compile=policy == "none")
    assert [name for name, _ in run.model.named_parameters()] == [name for name, _ in denoiser().named_parameters()]
    assert run.model.state_dict().keys() == denoiser().state_dict().keys()


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()  # which a reset leaves
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
def test_packs_of_all_sizes_are_compiled_for_once(fixed):
    run = Run(ALONE)
    run.model.compile_blocks(backend="eager")
    plain = Run(ALONE)
    graphs = []
    for step, count in enumerate((3, 4, 2, 3, 4, 2)):
        batch, goal = pack(samples(step, torch.float32)[-count:])
        tokens = len(batch.image)
        padded = pad_to(batch, (48, 24)) if fixed else batch
        (run.model.forward_ragged(padded)[:tokens] - goal).square().mean().backward()
        (plain.model.forward_ragged(batch) - goal).square().mean().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    # The first pack makes the graphs of the first block and of the last, which has no text to give.
    assert graphs[0] > 0
    assert graphs[1:] == [graphs[1]] * 5
    assert graphs[1] <= 2 * graphs[0]
    for one, two in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        if two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it
def test_compiled_blocks_are_computed_again_and_compiled_once(monkeypatch):
    """Full recomputation around compiled blocks, on packs of one size that differ in what is in them."""
    # Everything of the compiler but the code that it makes, which takes minutes.
    made = partialmethod(LensTransformer2DModel.compile_blocks, backend="aot_eager")
    monkeypatch.setattr(LensTransformer2DModel, "compile_blocks", made)
    run, plain = Run(ALONE, activation_checkpointing="full", compile=True), Run(ALONE)
    attention, calls, graphs = run.model.attention, [], []
    attend = attention._attend

    def counting(*arguments):
        calls.append(1)
        return attend(*arguments)

    attention._attend = torch.compiler.disable(counting)
    for step, count in enumerate((3, 4, 2, 3, 4, 2)):
        batch, goal = pack(samples(step, torch.float32)[-count:])
        calls.clear()
        loss = (run.model.forward_ragged(pad_to(batch, (48, 24)))[: len(batch.image)] - goal).square().mean()
        forward = len(calls)
        loss.backward()
        assert (forward, len(calls)) == (2, 4)  # two blocks, and both again
        graphs.append(counters["stats"]["unique_graphs"])
        expected = (plain.model.forward_ragged(batch) - goal).square().mean()
        expected.backward()
        torch.testing.assert_close(loss, expected)
    assert graphs[0] > 0
    assert graphs == [graphs[0]] * 6
    for one, two in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        if two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.soak
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_budget_of_activations_trains_like_any_other():
    """With the real compiler, which takes its time."""
    before = torch._functorch.config.activation_memory_budget
    try:
        run = Run(ALONE, activation_checkpointing="budget", activation_budget=0.5, compile=True)
        assert torch._functorch.config.activation_memory_budget == 0.5
        norms = run.steps(0, 2)
    finally:
        torch._functorch.config.activation_memory_budget = before
    assert norms == pytest.approx(Run(ALONE).steps(0, 2), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_checkpointing": "budget", "compile": True}, "activation_budget belongs to"),
        ({"activation_budget": 0.5}, "activation_budget belongs to"),
        ({"activation_checkpointing": "budget", "activation_budget": 0.5}, "set compile: true"),
        ({"activation_checkpointing": "selective", "compile": True}, "compile: true takes .*: none, full or budget"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValidationError, match=message):
        ParallelConfig(**settings)


@pytest.mark.parametrize(
    ("precision", "on_cpu", "on_cuda"),
    [
        ("auto", torch.float32, torch.bfloat16),
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
    ],
)
def test_what_is_computed_in(precision, on_cpu, on_cuda):
    settings = ParallelConfig(precision=precision)
    assert compute_dtype(settings, torch.device("cpu")) == on_cpu
    assert compute_dtype(settings, torch.device("cuda")) == on_cuda
