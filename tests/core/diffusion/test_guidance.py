"""Classifier-free guidance, with numbers that fit on a sheet of paper."""

from __future__ import annotations

import pytest
import torch

from lens_core.diffusion.guidance import guide

COND, UNCOND = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])


def test_without_rescale():
    """(1, 0) + 5·(2, 4)."""
    assert guide(COND, UNCOND, 5.0, rescale=False).tolist() == [[11, 20]]


def test_rescale_keeps_the_length():
    """(11, 20)·5/√521: the length of (3, 4) in the direction of (11, 20)."""
    (guided,) = guide(COND, UNCOND, 5.0, rescale=True).tolist()
    assert guided == pytest.approx([2.409594, 4.381080], abs=1e-6)


def test_rescale_enlarges_too():
    """(2, 0) + ½·(0, 2) is shorter than either end."""
    cond, uncond = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    (guided,) = guide(cond, uncond, 0.5, rescale=True).tolist()
    assert guided == pytest.approx([2**0.5, 2**0.5])


@pytest.mark.parametrize("rescale", [True, False])
def test_scale_one_is_the_prompt_alone(rescale):
    generator = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 50, 12, generator=generator)
    torch.testing.assert_close(guide(cond, uncond, 1.0, rescale=rescale), cond, rtol=1e-5, atol=1e-6)


def test_scale_zero_is_the_other_branch():
    torch.testing.assert_close(guide(COND, UNCOND, 0.0, rescale=False), UNCOND)


def test_each_token_has_its_own_length():
    generator = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 50, 12, generator=generator)
    guided = guide(cond, uncond, 7.0, rescale=True)
    torch.testing.assert_close(guided.norm(dim=-1), cond.norm(dim=-1))
    torch.testing.assert_close(guided[3:4], guide(cond[3:4], uncond[3:4], 7.0, rescale=True))


def test_vector_that_cancels_stays_zero():
    """(2, 0) - 2·(2, 0) + 2·(1, 0) is zero, and has no direction to scale."""
    guided = guide(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]]), 2.0, rescale=True)
    assert guided.tolist() == [[0, 0]]


def test_prompt_without_velocity_stays_zero():
    assert not guide(torch.zeros(2, 3), torch.ones(2, 3), 5.0, rescale=True).any()


def test_half_precision_is_rounded_only_at_the_end():
    generator = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 50, 12, generator=generator).bfloat16()
    exact = guide(cond.double(), uncond.double(), 9.0, rescale=True)
    assert torch.equal(guide(cond, uncond, 9.0, rescale=True), exact.bfloat16())
