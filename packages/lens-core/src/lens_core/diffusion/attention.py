"""Joint attention over ragged segments: each segment attends within itself, image and text together.

Suffixes: S a segment's tokens, image then text; M tokens of the joint buffer; A attention heads; D channels per head.

The plan of a batch is made once, not per block: an index that brings each segment's image and text tokens together,
and the groups of segments that have the same length. A group runs as one dense batch, so that neither padding nor a
mask is needed. Another backend (variable-length kernels on CUDA, FlexAttention) is another function of the same
signature over the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AttentionBackend", "AttentionPlan", "JointPlan", "plan_attention", "plan_joint", "reference_attention"]


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Segments of one buffer: `lengths` in order, and for each length the segments' tokens as an index [count·S].

    With one length in all, `index` is None and the buffer is used as it lies.
    """

    lengths: tuple[int, ...]
    groups: tuple[tuple[int, int, Tensor | None], ...]
    inverse: Tensor | None


@dataclass(frozen=True, kw_only=True)
class JointPlan:
    """How the image and the text buffer become one: `gather` brings a segment's tokens together, image first.

    `image` and `text` say where the tokens of each buffer lie in the joint one.
    """

    attention: AttentionPlan
    gather: Tensor
    image: Tensor
    text: Tensor


class AttentionBackend(Protocol):
    """Attention within segments: q, k, v [M, A, D] to [M, A, D], scale 1/√D, no mask."""

    def __call__(self, q_MAD: Tensor, k_MAD: Tensor, v_MAD: Tensor, plan: AttentionPlan) -> Tensor:
        """Attend."""
        ...


def plan_attention(lengths: Sequence[int], device: torch.device) -> AttentionPlan:
    """Group segments of equal length."""
    wanted = sorted(set(lengths) - {0})
    if len(wanted) <= 1:
        size = wanted[0] if wanted else 0
        count = sum(length > 0 for length in lengths)
        return AttentionPlan(lengths=tuple(lengths), groups=((count, size, None),) if size else (), inverse=None)
    starts, start = [], 0
    for length in lengths:
        starts.append(start)
        start += length
    groups = []
    for size in wanted:
        first = torch.tensor([s for s, length in zip(starts, lengths, strict=True) if length == size])
        groups.append((len(first), size, (first[:, None] + torch.arange(size)).flatten()))
    order = torch.cat([index for _, _, index in groups])
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return AttentionPlan(
        lengths=tuple(lengths),
        groups=tuple((count, size, index.to(device)) for count, size, index in groups),
        inverse=inverse.to(device),
    )


def plan_joint(image_lengths: Sequence[int], text_lengths: Sequence[int], device: torch.device) -> JointPlan:
    """Interleave two buffers segment by segment, image before text."""
    pieces, image, text = [], [], []
    total = sum(image_lengths)
    at_image = at_text = at_joint = 0
    for n, m in zip(image_lengths, text_lengths, strict=True):
        pieces += [torch.arange(at_image, at_image + n), torch.arange(total + at_text, total + at_text + m)]
        image.append(torch.arange(at_joint, at_joint + n))
        text.append(torch.arange(at_joint + n, at_joint + n + m))
        at_image, at_text, at_joint = at_image + n, at_text + m, at_joint + n + m
    joint = [n + m for n, m in zip(image_lengths, text_lengths, strict=True)]
    return JointPlan(
        attention=plan_attention(joint, device),
        gather=torch.cat(pieces).to(device),
        image=torch.cat(image).to(device),
        text=torch.cat(text).to(device),
    )


def reference_attention(q_MAD: Tensor, k_MAD: Tensor, v_MAD: Tensor, plan: AttentionPlan) -> Tensor:
    """Dense attention per group of equally long segments; runs everywhere."""
    outputs = []
    for count, size, index in plan.groups:
        q, k, v = (x if index is None else x[index] for x in (q_MAD, k_MAD, v_MAD))
        # (group, S, A, D) -> (group, A, S, D)
        shape = (count, size, *q_MAD.shape[1:])
        q, k, v = (x.view(shape).transpose(1, 2) for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, *q_MAD.shape[1:]))
    if not outputs:
        return torch.zeros_like(v_MAD)
    return outputs[0] if plan.inverse is None else torch.cat(outputs)[plan.inverse]
