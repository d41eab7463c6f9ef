"""RMS norms with a backward pass of their own.

Suffixes: M tokens, D channels.

PyTorch's RMS norm is a chain of elementary operations on a CPU, and costs several times what its arithmetic does. Here
the forward pass keeps the normalised tokens and their scale, and the backward pass needs no more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RMSNorm", "unit_rms"]


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


class _UnitRMS(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, eps: float) -> Tensor:
        exact = torch.promote_types(x_MD.dtype, torch.float32)
        length_M1 = torch.linalg.vector_norm(x_MD, dim=-1, keepdim=True, dtype=exact)
        scale_M1 = (length_M1.square_().div_(x_MD.shape[-1]).add_(eps)).rsqrt_()
        y_MD = (x_MD * scale_M1).to(x_MD.dtype)
        ctx.save_for_backward(y_MD, scale_M1)
        return y_MD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # dx = scale · (dy - y · mean(dy · y))
        y_MD, scale_M1 = ctx.saved_tensors
        grad_MD = grads[0].to(scale_M1.dtype)
        shared_M1 = (grad_MD * y_MD).mean(-1, keepdim=True)
        return torch.addcmul(grad_MD, y_MD, shared_M1, value=-1).mul_(scale_M1).to(y_MD.dtype), None
