"""Modulation by segment against a loop over the segments, forward and backward."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_core.diffusion.segments import Segments

LENGTHS = [[3, 3], [3, 1, 4], [2, 0, 3], [0, 2, 2], [0, 0], [5], [0], [1, 1, 1]]
CPU = torch.device("cpu")
EPS = 1e-2
OPERATIONS = {
    "modulate": Segments.modulate,
    "norm_modulate": partial(Segments.norm_modulate, eps=EPS),
    "add_gated": Segments.add_gated,
}


def by_loop(operation, lengths, x, first, second):
    """Each segment by itself: x·second + first, the same of the normed x, or x + first·update."""
    parts = []
    for g, part in enumerate(x.split(lengths)):
        if operation == "norm_modulate":
            part = part / (part.square().mean(-1, keepdim=True) + EPS).sqrt()
        if operation == "add_gated":
            parts.append(part + first[g] * second.split(lengths)[g])
        else:
            parts.append(part * second[g] + first[g])
    return torch.cat(parts)


def inputs_of(operation, lengths, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(lengths))
    last = sum(lengths) if operation == "add_gated" else len(lengths)
    rows = (sum(lengths), len(lengths), last)
    return [torch.randn(n, 4, generator=generator, dtype=dtype, requires_grad=True) for n in rows]


def check_against_loop(operation, lengths):
    inputs = inputs_of(operation, lengths)
    output = OPERATIONS[operation](Segments(lengths, CPU), *inputs)
    expected = by_loop(operation, lengths, *inputs)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-14)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    ours = torch.autograd.grad((output * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


@pytest.fixture(params=[False, True], ids=["plain", "for-a-compiler"])
def _path(request, monkeypatch):
    """What a compiler, and a GPU, are given is run as it stands."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_a_loop(operation, lengths):
    check_against_loop(operation, lengths)


@given(st.sampled_from(sorted(OPERATIONS)), st.lists(st.integers(0, 5), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_equals_a_loop_for_any_lengths(operation, lengths):
    check_against_loop(operation, lengths)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("lengths", [[3, 3], [3, 0, 4]], ids=str)
def test_gradients_are_derivatives(operation, lengths):
    operate = partial(OPERATIONS[operation], Segments(lengths, CPU))
    assert torch.autograd.gradcheck(operate, inputs_of(operation, lengths))


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("lengths", [[4096, 1], [4096, 4096]], ids=str)
def test_many_small_gradients_add_up_in_bfloat16(lengths):
    """Added one by one in bfloat16, a sum of ones ends at 256."""
    shift = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    x = torch.zeros(sum(lengths), 4, dtype=torch.bfloat16)
    Segments(lengths, CPU).modulate(x, shift, torch.ones_like(shift)).sum().backward()
    assert shift.grad[:, 0].tolist() == lengths


def test_backward_twice_gives_the_same_bits():
    lengths = [700, 0, 33, 1201]
    inputs = inputs_of("modulate", lengths, torch.float32)
    runs = [torch.autograd.grad(Segments(lengths, CPU).modulate(*inputs).sin().sum(), inputs) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))
