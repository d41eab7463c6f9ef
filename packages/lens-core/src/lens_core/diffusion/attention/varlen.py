"""Attention by variable-length kernels: no padding at all. CUDA, half precision.

Suffixes: R rows, A heads, P channels per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from lens_core.diffusion.attention.plan import AttentionPlan, places_of
from lens_core.diffusion.device import send

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.diffusion.attention.backends import Heads

__all__ = ["PackedPlan", "VarlenAttention"]


@dataclass(frozen=True, kw_only=True)
class PackedPlan(AttentionPlan):
    """A layout without holes; `offsets` int32 [G+1] says where segments begin, `longest` is the longest of them."""

    offsets: Tensor
    longest: int


class VarlenAttention:
    """`torch.nn.attention.varlen`."""

    def plan(self, *lengths: Sequence[int], device: torch.device) -> PackedPlan:
        """Segments one after another, in the order of the batch."""
        joint = [sum(parts) for parts in zip(*lengths, strict=True)]
        offsets = [0, *accumulate(joint)]
        places = None
        if len(lengths) > 1:
            places = places_of(lengths, offsets[:-1], device)
        return PackedPlan(
            rows=offsets[-1],
            sections=(offsets[-1],),
            places=places,
            holes=None,
            offsets=send(torch.tensor(offsets, dtype=torch.int32), device),
            longest=max(joint, default=0),
        )

    def __call__(self, sections: Sequence[Heads], plan: AttentionPlan) -> Tensor:
        """Attend."""
        assert isinstance(plan, PackedPlan)
        ((q_RAP, k_RAP, v_RAP),) = sections
        output: Tensor = varlen_attn(  # type: ignore[assignment]
            q_RAP, k_RAP, v_RAP.contiguous(), plan.offsets, plan.offsets, plan.longest, plan.longest
        )
        return output
