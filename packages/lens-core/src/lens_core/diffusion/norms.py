"""RMS norms with a backward pass of their own.

Suffixes: M tokens, D channels.

PyTorch's RMS norm is a chain of elementary operations on a CPU, and costs several times what its arithmetic does. Here
the forward pass keeps the normalised tokens and their scale, and the backward pass needs no more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RMSNorm", "rms_scale", "unit_rms", "unit_rms_backward"]


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last axis; the division in float32 at least, as in the release."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_MD: Tensor) -> Tensor:
        """The normalised tokens, times the weight."""
        return unit_rms(x_MD, self.eps) * self.weight


def unit_rms(x_MD: Tensor, eps: float) -> Tensor:
    """x / √(mean(x²) + eps) over the last axis, in the dtype of x."""
    return _UnitRMS.apply(x_MD, eps)


def rms_scale(x_MD: Tensor, eps: float) -> Tensor:
    """1 / √(mean(x²) + eps) over the last axis, [M, 1], in float32 at least."""
    exact = torch.promote_types(x_MD.dtype, torch.float32)
    length_M1 = torch.linalg.vector_norm(x_MD, dim=-1, keepdim=True, dtype=exact)
    return (length_M1.square_().div_(x_MD.shape[-1]).add_(eps)).rsqrt_()


def unit_rms_backward(grad_MD: Tensor, unit_MD: Tensor, scale_M1: Tensor) -> Tensor:
    """Gradient of `unit_rms`: scale · (grad - unit · mean(grad · unit))."""
    grad_MD = grad_MD.to(scale_M1.dtype)
    shared_M1 = (grad_MD * unit_MD).mean(-1, keepdim=True)
    return torch.addcmul(grad_MD, unit_MD, shared_M1, value=-1).mul_(scale_M1).to(unit_MD.dtype)


class _UnitRMS(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, eps: float) -> Tensor:
        scale_M1 = rms_scale(x_MD, eps)
        unit_MD = (x_MD * scale_M1).to(x_MD.dtype)
        ctx.save_for_backward(unit_MD, scale_M1)
        return unit_MD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return unit_rms_backward(grads[0], *ctx.saved_tensors), None
