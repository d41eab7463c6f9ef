"""Attention by FlexAttention with a mask of segments: no padding but to the end of the last block of rows.

Suffixes: R rows, A heads, P channels per head.

On CUDA the kernel is compiled, once per shape of heads. On a CPU it runs uncompiled, for tests, forward only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from lens_core.diffusion.attention.plan import AttentionPlan, places_of
from lens_core.diffusion.device import send

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.diffusion.attention.backends import Heads

__all__ = ["FlexAttention", "MaskedPlan"]

BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class MaskedPlan(AttentionPlan):
    """Segments one after another, padded together to a multiple of a block; `mask` keeps them apart."""

    mask: Any


class FlexAttention:
    """`torch.nn.attention.flex_attention`."""

    def plan(self, *lengths: Sequence[int], device: torch.device) -> MaskedPlan:
        """Segments one after another, in the order of the batch, and the mask."""
        joint = [sum(parts) for parts in zip(*lengths, strict=True)]
        size_G = torch.tensor(joint)
        tokens = int(size_G.sum())
        # A whole number of blocks, so that few shapes are compiled; the rows beyond belong to a segment of their own.
        rows = -(-tokens // BLOCK) * BLOCK
        segment_R = torch.full((rows,), len(joint), device=device)
        segment_R[:tokens] = torch.repeat_interleave(send(size_G, device), output_size=tokens)

        def same_segment(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return segment_R[query] == segment_R[key]

        return MaskedPlan(
            rows=rows,
            sections=(rows,),
            places=places_of(lengths, (size_G.cumsum(0) - size_G).tolist(), device),
            holes=torch.arange(tokens, rows, device=device) if rows > tokens else None,
            mask=create_block_mask(same_segment, None, None, rows, rows, device=device) if tokens else None,
        )

    def __call__(self, sections: Sequence[Heads], plan: AttentionPlan) -> Tensor:
        """Attend."""
        assert isinstance(plan, MaskedPlan)
        ((q_RAP, k_RAP, v_RAP),) = sections
        if plan.mask is None:
            return v_RAP  # which holds no token
        q, k, v = (x.transpose(0, 1)[None] for x in (q_RAP, k_RAP, v_RAP))
        # Within a compiled block it is compiled with the block.
        apart = q_RAP.is_cuda and not torch.compiler.is_compiling()
        kernel = _compiled() if apart else flex_attention
        output: Tensor = kernel(q, k, v, block_mask=plan.mask)
        return output[0].transpose(0, 1)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)
