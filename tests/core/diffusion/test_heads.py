"""Queries, keys and values in one function, against the same in elementary operations."""

from __future__ import annotations

import pytest
import torch

from lens_core.diffusion.attention import attention_backend
from lens_core.diffusion.attention.heads import joint_heads, rotate

HEADS, CHANNELS, EPS = 2, 4, 1e-3
STREAMS = [([3, 3], [2, 2]), ([6, 1, 2], [5, 0, 3]), ([0, 4], [3, 0])]
CPU = torch.device("cpu")


def inputs_of(streams, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return [normal(sum(n), 3 * HEADS * CHANNELS) for n in streams] + [normal(2, CHANNELS) for _ in streams]


def plan_and_rope(streams):
    plan = attention_backend("reference").plan(*streams, device=CPU)
    angle = torch.linspace(-3, 3, plan.rows * CHANNELS // 2, dtype=torch.float64).view(plan.rows, 1, -1)
    return plan, torch.polar(torch.ones_like(angle), angle)


def by_hand(streams, image, text, image_weight, text_weight):
    plan, rope = plan_and_rope(streams)
    parts = []
    for qkv, weight in ((image, image_weight), (text, text_weight)):
        q, k, v = qkv.unflatten(-1, (3, HEADS, CHANNELS)).unbind(1)
        q, k = (x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * w for x, w in zip((q, k), weight, strict=True))
        parts.append((q, k, v))
    q, k, v = (plan.join(*streams) for streams in zip(*parts, strict=True))
    return [torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rope).flatten(-2) for x in (q, k)] + [
        v
    ]


def ours(streams, *inputs):
    plan, rope = plan_and_rope(streams)
    sections = joint_heads(inputs[:2], inputs[2:], torch.view_as_real(rope), plan, eps=EPS)
    return [torch.cat(parts) for parts in zip(*sections, strict=True)]


@pytest.mark.parametrize("streams", STREAMS, ids=str)
def test_equals_elementary_operations(streams):
    inputs = inputs_of(streams)
    got, expected = ours(streams, *inputs), by_hand(streams, *inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    gradients = [
        torch.autograd.grad(sum((x * (i + 1)).sin().sum() for i, x in enumerate(parts)), inputs)
        for parts in (got, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("streams", STREAMS[:2], ids=str)
def test_gradients_are_derivatives(streams):
    assert torch.autograd.gradcheck(lambda *inputs: ours(streams, *inputs), inputs_of(streams))


def test_half_precision_stays_half_and_is_as_near_as_its_digits():
    streams = STREAMS[1]
    half = [x.detach().bfloat16() for x in inputs_of(streams)]
    for got, expected in zip(ours(streams, *half), by_hand(streams, *(x.double() for x in half)), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=0.05)


def test_a_rotation_turns_adjacent_pairs():
    quarter = torch.polar(torch.ones(1, 1, 2), torch.full((1, 1, 2), torch.pi / 2))
    turned = rotate(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.view_as_real(quarter))
    torch.testing.assert_close(turned, torch.tensor([[[-2.0, 1.0, -4.0, 3.0]]]))
