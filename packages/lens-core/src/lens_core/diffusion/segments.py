"""Rows that belong to segments: hand each segment's row of numbers to all of its tokens, and add them up again.

Suffixes: N tokens of all segments, G segments, D channels.

Modulation (adaptive norm) is computed once per segment and used by every token of it. Where all segments are equally
long this is broadcasting; otherwise it is a gather, whose plain backward on a GPU adds with atomics in a random order.
The backward here is a sum over each segment in turn, or a matrix product: deterministic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens_core.diffusion.device import layout_device, send
from lens_core.diffusion.norms import rms_scale, unit_rms_backward

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Segments"]


class Segments:
    """The segments of one flat buffer.

    Args:
        lengths: tokens of each segment, in order.
        device: where the buffer lives.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device):
        self.count = len(lengths)
        self._uniform = bool(lengths) and len(set(lengths)) == 1
        lengths_G = send(torch.tensor(lengths, dtype=torch.long), layout_device(device))
        self.index = torch.repeat_interleave(lengths_G, output_size=sum(lengths)).to(device)

    @property
    def uniform(self) -> bool:
        """Whether broadcasting will do. Compiled code always gathers: it fuses that, and is then the same for all."""
        return not torch.compiler.is_compiling() and self._uniform

    def modulate(self, x_ND: Tensor, shift_GD: Tensor, scale_GD: Tensor) -> Tensor:
        """x·scale + shift, with each segment's own shift and scale."""
        return _Modulate.apply(self, x_ND, shift_GD, scale_GD)

    def norm_modulate(self, x_ND: Tensor, shift_GD: Tensor, scale_GD: Tensor, eps: float) -> Tensor:
        """x / √(mean(x²) + eps)·scale + shift: an RMS norm, whose weight belongs into `scale`, and its modulation."""
        return _NormModulate.apply(self, x_ND, shift_GD, scale_GD, eps)

    def add_gated(self, x_ND: Tensor, gate_GD: Tensor, update_ND: Tensor) -> Tensor:
        """x + gate·update, with each segment's own gate."""
        return _AddGated.apply(self, x_ND, gate_GD, update_ND)

    def fold(self, x_ND: Tensor) -> Tensor:
        """Tokens in a shape that meets `rows`."""
        return x_ND.view(self.count, -1, x_ND.shape[-1]) if self.uniform else x_ND

    def rows(self, rows_GD: Tensor) -> Tensor:
        """Each segment's row, in a shape that meets `fold`."""
        return rows_GD[:, None] if self.uniform else rows_GD.index_select(0, self.index)

    def sums(self, x_ND: Tensor) -> Tensor:
        """The sum over each segment's tokens [G, D]; takes `fold`'s shape too."""
        exact = torch.promote_types(x_ND.dtype, torch.float32)
        if self.uniform:
            return self.fold(x_ND).sum(1, dtype=exact)
        if x_ND.device.type != "cuda" and not torch.compiler.is_compiling():
            zeros = x_ND.new_zeros(self.count, x_ND.shape[-1], dtype=exact)
            return zeros.index_add_(0, self.index, x_ND.to(exact))
        # On a CPU index_add_ goes row by row. On CUDA it adds with atomics, and segment_reduce is slow: a product
        # with the matrix of which token is whose reads them once. In bfloat16 it rounds, as autograd would right after.
        segments_G1 = torch.arange(self.count, device=x_ND.device)[:, None]
        return (self.index == segments_G1).to(x_ND.dtype) @ x_ND


# Autograd brings a gradient to the dtype of what it belongs to: sums may be more exact than that.


class _Modulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, segments: Segments, x_ND: Tensor, shift_GD: Tensor, scale_GD: Tensor) -> Tensor:
        ctx.segments = segments
        ctx.save_for_backward(x_ND, scale_GD)
        return torch.addcmul(segments.rows(shift_GD), segments.fold(x_ND), segments.rows(scale_GD)).view_as(x_ND)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        segments, (x_ND, scale_GD) = ctx.segments, ctx.saved_tensors
        (grad_ND,) = grads
        grad_x_ND = (segments.fold(grad_ND) * segments.rows(scale_GD)).view_as(x_ND)
        return None, grad_x_ND, segments.sums(grad_ND), segments.sums(grad_ND * x_ND)


class _NormModulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, segments: Segments, x_ND: Tensor, shift_GD: Tensor, scale_GD: Tensor, eps: float) -> Tensor:
        inverse_N1 = rms_scale(x_ND, eps)
        unit_ND = (x_ND * inverse_N1).to(x_ND.dtype)
        ctx.segments = segments
        ctx.save_for_backward(unit_ND, inverse_N1, scale_GD)
        return torch.addcmul(segments.rows(shift_GD), segments.fold(unit_ND), segments.rows(scale_GD)).view_as(x_ND)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        segments, (unit_ND, inverse_N1, scale_GD) = ctx.segments, ctx.saved_tensors
        (grad_ND,) = grads
        scaled_ND = (segments.fold(grad_ND) * segments.rows(scale_GD)).view_as(unit_ND)
        grad_x_ND = unit_rms_backward(scaled_ND, unit_ND, inverse_N1)
        return None, grad_x_ND, segments.sums(grad_ND), segments.sums(grad_ND * unit_ND), None


class _AddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, segments: Segments, x_ND: Tensor, gate_GD: Tensor, update_ND: Tensor) -> Tensor:
        ctx.segments = segments
        ctx.save_for_backward(gate_GD, update_ND)
        return torch.addcmul(segments.fold(x_ND), segments.rows(gate_GD), segments.fold(update_ND)).view_as(x_ND)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        segments, (gate_GD, update_ND) = ctx.segments, ctx.saved_tensors
        (grad_ND,) = grads
        update_grad_ND = (segments.fold(grad_ND) * segments.rows(gate_GD)).view_as(update_ND)
        return None, grad_ND, segments.sums(grad_ND * update_ND), update_grad_ND
