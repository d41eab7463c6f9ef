"""Joint attention over ragged segments: each segment attends within itself, image and text together.

Suffixes: M tokens of the buffer; S a segment's tokens; R rows of the padded form; A attention heads; D channels a head.

The buffer holds the image tokens of all segments and then their text tokens, as the denoiser's two streams leave them.
The plan of a batch is made once, not per block: where each segment's tokens lie, and how segments of about one length
share a dense call. Another backend (variable-length kernels on CUDA, FlexAttention) is another function of the same
signature over a plan of the same segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AttentionBackend", "AttentionPlan", "Group", "plan_attention", "reference_attention"]

MAX_WASTE = 1.6
"""Segments share a dense call while its score matrix is at most this much larger than theirs are without padding."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Segments that share a dense call, padded to `size` tokens; `mask` [count, 1, 1, size] is True at real keys."""

    count: int
    size: int
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Where the segments of a buffer lie, and how they are attended to.

    Args:
        groups: the dense calls, in the order of their rows.
        source: for each padded row the token that it holds, [R]; None if the rows are the buffer as it lies.
        place: for each token its padded row, [M]; None likewise.
        holes: the padded rows that hold no token.
    """

    groups: tuple[Group, ...]
    source: Tensor | None
    place: Tensor | None
    holes: Tensor | None

    def pack(self, tokens: Tensor) -> Tensor:
        """Tokens to padded rows, zero in the holes."""
        if self.source is None:
            return tokens
        rows = tokens.index_select(0, self.source)
        return rows if self.holes is None else rows.index_fill_(0, self.holes, 0.0)

    def unpack(self, rows: Tensor) -> Tensor:
        """Padded rows back to tokens: the transpose of `pack`."""
        return rows if self.place is None else rows.index_select(0, self.place)


class AttentionBackend(Protocol):
    """Attention within segments: q, k, v [M, A, D] to [M, A, D], scale 1/√D, every token of a segment visible."""

    def __call__(self, q_MAD: Tensor, k_MAD: Tensor, v_MAD: Tensor, plan: AttentionPlan) -> Tensor:
        """Attend."""
        ...


def plan_attention(*lengths: Sequence[int], device: torch.device) -> AttentionPlan:
    """Plan for a buffer of one or more streams.

    Args:
        lengths: for each stream the tokens of each segment; the buffer holds the streams one after another.
        device: where the buffer lives.
    """
    joint = [sum(parts) for parts in zip(*lengths, strict=True)]
    order = sorted((g for g, size in enumerate(joint) if size), key=joint.__getitem__)
    groups, first = [], 0
    for cut in _cuts([joint[g] for g in order]):
        sizes = [joint[g] for g in order[first:cut]]
        first, count, size = cut, len(sizes), sizes[-1]
        mask = None
        if sizes[0] < size:
            mask = (torch.arange(size) < torch.tensor(sizes)[:, None]).view(count, 1, 1, size).to(device)
        groups.append(Group(count=count, size=size, mask=mask))
    if len(lengths) == 1 and len(groups) <= 1 and (not groups or groups[0].mask is None):
        return AttentionPlan(groups=tuple(groups), source=None, place=None, holes=None)
    # Row at which each segment begins in the padded form, then for each token its row.
    starts, row = [0] * len(joint), 0
    segments = iter(order)
    for group in groups:
        for _ in range(group.count):
            starts[next(segments)] = row
            row += group.size
    place, taken = [], torch.zeros(len(joint), dtype=torch.long)
    for stream in lengths:
        size_G = torch.tensor(stream)
        segment_M = torch.repeat_interleave(size_G)
        inside_M = torch.arange(len(segment_M)) - (size_G.cumsum(0) - size_G)[segment_M]
        place.append((torch.tensor(starts) + taken)[segment_M] + inside_M)
        taken = taken + size_G
    place_M = torch.cat(place)
    source_R = torch.full((row,), -1)
    source_R[place_M] = torch.arange(len(place_M))
    holes = (source_R < 0).nonzero()[:, 0]
    return AttentionPlan(
        groups=tuple(groups),
        source=source_R.clamp_min(0).to(device),
        place=place_M.to(device),
        holes=holes.to(device) if len(holes) else None,
    )


def reference_attention(q_MAD: Tensor, k_MAD: Tensor, v_MAD: Tensor, plan: AttentionPlan) -> Tensor:
    """Dense attention per group; runs everywhere."""
    if not plan.groups:
        return v_MAD  # which holds no token
    # (R, A, D) -> per group (count, A, size, D)
    rows = [group.count * group.size for group in plan.groups]
    packed = [_Pack.apply(x, plan).split(rows) for x in (q_MAD, k_MAD, v_MAD)]
    outputs = []
    for group, *parts in zip(plan.groups, *packed, strict=True):
        q, k, v = (part.unflatten(0, (group.count, group.size)).transpose(1, 2) for part in parts)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return _Unpack.apply(outputs[0] if len(outputs) == 1 else torch.cat(outputs), plan)


class _Pack(torch.autograd.Function):
    # Indexing's own backward adds row by row into zeros; here no row is taken twice, so it is another look-up.
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, plan: AttentionPlan) -> Tensor:
        ctx.plan = plan
        return plan.pack(tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.plan.unpack(grads[0]), None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: AttentionPlan) -> Tensor:
        ctx.plan = plan
        return plan.unpack(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.plan.pack(grads[0]), None


def _cuts(sizes: list[int]) -> list[int]:
    """Where groups end in an ascending list of sizes."""
    cuts, first, exact = [], 0, 0
    for number, size in enumerate(sizes):
        if exact and (number + 1 - first) * size**2 > MAX_WASTE * (exact + size**2):
            cuts.append(number)
            first, exact = number, 0
        exact += size**2
    return [*cuts, len(sizes)] if sizes else []
