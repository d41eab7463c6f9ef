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
        self.tokens = sum(lengths)
        self._uniform = bool(lengths) and len(set(lengths)) == 1
        if not self._uniform:
            self._lengths = torch.tensor(lengths).to(device)

    def modulate(self, x_ND: Tensor, shift_GD: Tensor, scale_GD: Tensor) -> Tensor:
        """x·(1 + scale) + shift, with each segment's own shift and scale."""
        scale_GD = scale_GD + 1
        if self._uniform:
            x = x_ND.view(self.count, -1, x_ND.shape[-1])
            return torch.addcmul(shift_GD[:, None], x, scale_GD[:, None]).view_as(x_ND)
        return torch.addcmul(self.spread(shift_GD), x_ND, self.spread(scale_GD))

    def add_gated(self, x_ND: Tensor, gate_GD: Tensor, update_ND: Tensor) -> Tensor:
        """x + gate·update, with each segment's own gate."""
        if self._uniform:
            shape = (self.count, -1, x_ND.shape[-1])
            return torch.addcmul(x_ND.view(shape), gate_GD[:, None], update_ND.view(shape)).view_as(x_ND)
        return torch.addcmul(x_ND, self.spread(gate_GD), update_ND)

    def spread(self, rows_GD: Tensor) -> Tensor:
        """Each segment's row, once per token: [G, D] to [N, D]."""
        if self._uniform:
            return rows_GD[:, None].expand(-1, self.tokens // self.count, -1).reshape(self.tokens, -1)
        return _Spread.apply(rows_GD, self._lengths)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_GD: Tensor, lengths_G: Tensor) -> Tensor:
        ctx.save_for_backward(lengths_G)
        return rows_GD.repeat_interleave(lengths_G, dim=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (lengths_G,) = ctx.saved_tensors
        (grad_ND,) = grads
        exact = torch.promote_types(grad_ND.dtype, torch.float32)
        sums_GD = torch.segment_reduce(grad_ND.to(exact), "sum", lengths=lengths_G, axis=0, initial=0)
        return sums_GD.to(grad_ND.dtype), None
