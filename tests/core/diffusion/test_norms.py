"""The RMS norm with a backward pass of its own, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lens_core.diffusion.norms import RMSNorm, unit_rms


def random(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.5])
@pytest.mark.parametrize("shape", [(5, 8), (3, 2, 8), (0, 8)], ids=str)
def test_equals_torch_forward_and_backward(shape, eps):
    x, weight = random(*shape).requires_grad_(), random(8)
    norm = RMSNorm(8, eps=eps).double()
    with torch.no_grad():
        norm.weight.copy_(weight)
    weight.requires_grad_()
    ours, theirs = norm(x), F.rms_norm(x, (8,), weight, eps)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    direction = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view_as(x)
    ours = torch.autograd.grad((ours * direction).sum(), [x, norm.weight])
    theirs = torch.autograd.grad((theirs * direction).sum(), [x, weight])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradient_is_a_derivative():
    assert torch.autograd.gradcheck(lambda x: unit_rms(x, 0.1), random(4, 6).requires_grad_())


def test_zeros_stay_zero():
    x = torch.zeros(2, 8, requires_grad=True)
    y = unit_rms(x, 1e-6)
    y.sum().backward()
    assert not y.any()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e15], ids=str)
def test_bfloat16_is_rounded_only_at_the_end(scale):
    """A sum of 4096 squares kept in bfloat16 would stall far below its value."""
    x = (random(3, 4096) * scale).bfloat16()
    exact = unit_rms(x.double(), 1e-6)
    torch.testing.assert_close(unit_rms(x, 1e-6).double(), exact, rtol=2**-8, atol=0)
