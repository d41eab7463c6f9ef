"""Rows that belong to segments: hand each segment's row of numbers to all of its tokens, and add them up again.

Suffixes: N tokens of all segments, G segments, D channels.

Modulation (adaptive norm) is computed once per segment and used by every token of it. Where all segments are equally
long this is broadcasting; otherwise it is a gather, whose plain backward on a GPU adds with atomics in a random order.
A segment's tokens lie together, so the backward here is a sum over each segment in turn: deterministic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
        self.uniform = bool(lengths) and len(set(lengths)) == 1
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=device)
        self.index = None if self.uniform else torch.repeat_interleave(self.lengths)

    def modulate(self, x_ND: Tensor, shift_GD: Tensor, scale_GD: Tensor) -> Tensor:
        """x·scale + shift, with each segment's own shift and scale."""
        return torch.addcmul(self._rows(shift_GD), self._fold(x_ND), self._rows(scale_GD)).view_as(x_ND)

    def add_gated(self, x_ND: Tensor, gate_GD: Tensor, update_ND: Tensor) -> Tensor:
        """x + gate·update, with each segment's own gate."""
        return torch.addcmul(self._fold(x_ND), self._rows(gate_GD), self._fold(update_ND)).view_as(x_ND)

    def _fold(self, x_ND: Tensor) -> Tensor:
        return x_ND.view(self.count, -1, x_ND.shape[-1]) if self.uniform else x_ND

    def _rows(self, rows_GD: Tensor) -> Tensor:
        """Each segment's row, in a shape that meets `_fold`."""
        if self.uniform:
            return rows_GD[:, None]
        return _Spread.apply(rows_GD, self.index, self.lengths)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_GD: Tensor, index_N: Tensor, lengths_G: Tensor) -> Tensor:
        ctx.save_for_backward(index_N, lengths_G)
        return rows_GD.index_select(0, index_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        index_N, lengths_G = ctx.saved_tensors
        (grad_ND,) = grads
        exact_ND = grad_ND.to(torch.promote_types(grad_ND.dtype, torch.float32))
        if grad_ND.device.type == "cpu":
            # Here, index_add_ goes row by row: as deterministic as segment_reduce, and ten times faster.
            sums_GD = exact_ND.new_zeros(len(lengths_G), grad_ND.shape[-1]).index_add_(0, index_N, exact_ND)
        else:
            sums_GD = torch.segment_reduce(exact_ND, "sum", lengths=lengths_G, axis=0, initial=0)
        return sums_GD.to(grad_ND.dtype), None, None
