"""From the streams' fused projections to queries, keys and values in the joint layout: normed, weighted, rotated.

Suffixes: N tokens of a stream; R rows of the joint layout; D model width; A heads, P channels per head.

One function with a backward pass of its own. Written as elementary operations it is a dozen passes over memory each
way, and on a CPU costs as much as the projections do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens_core.diffusion.norms import rms_scale, unit_rms_backward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_core.diffusion.attention.backends import Heads
    from lens_core.diffusion.attention.plan import AttentionPlan

__all__ = ["joint_heads", "rotate"]


def joint_heads(
    projections: Sequence[Tensor], weights: Sequence[Tensor], rope_RP2: Tensor, plan: AttentionPlan, *, eps: float
) -> list[Heads]:
    """Queries, keys and values [R, A, P] of each section of the joint layout.

    Args:
        projections: for each stream [N, 3·D], all of q, then k, then v, each head after head.
        weights: for each stream the weights [2, P] of the queries' and the keys' RMS norm, shared by all heads.
        rope_RP2: the rotation of each row, cosines and sines [R, 1, P/2, 2].
        plan: the joint layout.
        eps: of the norms.
    """
    flat = _JointHeads.apply(plan, rope_RP2, eps, *projections, *weights)
    return [flat[i : i + 3] for i in range(0, len(flat), 3)]


def rotate(x_RAP: Tensor, rope_RP2: Tensor, out: Tensor | None = None, *, back: bool = False) -> Tensor:
    """Rotate adjacent channel pairs (2k, 2k+1), in float32 at least; or turn them back."""
    exact = torch.promote_types(x_RAP.dtype, torch.float32)
    if torch.compiler.is_compiling():  # which fuses all this, but no complex numbers
        first, second = x_RAP.to(exact).unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = rope_RP2.unbind(-1)
        sin = -sin if back else sin
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
        turned = turned.flatten(-2).to(x_RAP.dtype)
        return turned if out is None else out.copy_(turned)
    rope_RP = torch.view_as_complex(rope_RP2)
    rope_RP = rope_RP.conj() if back else rope_RP
    if out is not None and out.dtype == exact:
        torch.mul(_pairs(x_RAP), rope_RP, out=_pairs(out))
        return out
    turned = torch.view_as_real(_pairs(x_RAP.to(exact)) * rope_RP).flatten(-2).to(x_RAP.dtype)
    return turned if out is None else out.copy_(turned)


def _pairs(x: Tensor) -> Tensor:
    if x.stride(-1) != 1:  # as some backward passes leave their gradients
        x = x.contiguous()
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


class _JointHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: AttentionPlan, rope_RP2: Tensor, eps: float, *inputs: Tensor) -> tuple[Tensor, ...]:
        half = len(inputs) // 2
        projections, weights = inputs[:half], inputs[half:]
        heads = projections[0].unflatten(-1, (3, -1, weights[0].shape[-1]))
        rows = plan.blank(heads)
        units, scales = [], []
        for place, qkv_ND, weight_2P in zip(plan.places or (), projections, weights, strict=True):
            qkv = qkv_ND.view(-1, *heads.shape[1:])
            scale = rms_scale(qkv[:, :2], eps)
            unit = (qkv[:, :2] * scale).to(qkv.dtype)
            rows[:, :2].index_copy_(0, place, (unit * weight_2P[:, None]).to(qkv.dtype))
            rows[:, 2].index_copy_(0, place, qkv[:, 2])
            units.append(unit)
            scales.append(scale)
        rotate(rows[:, :2], rope_RP2[:, None], out=rows[:, :2])
        ctx.plan = plan
        ctx.save_for_backward(rope_RP2, *weights, *units, *scales)
        return tuple(x for section in rows.split(plan.cuts) for x in section.unbind(1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan, (rope_RP2, *saved) = ctx.plan, ctx.saved_tensors
        third = len(saved) // 3
        weights, units, scales = saved[:third], saved[third : 2 * third], saved[2 * third :]
        rows = grads[0].new_empty(plan.rows, 3, *grads[0].shape[1:])
        parts = zip(rows.split(plan.cuts), rope_RP2.split(plan.cuts), strict=True)
        for number, (section, rope) in enumerate(parts):
            q, k, v = grads[3 * number : 3 * number + 3]
            section[:, 0], section[:, 1], section[:, 2] = rotate(q, rope, back=True), rotate(k, rope, back=True), v
        projection_grads, weight_grads = [], []
        for grad, weight_2P, unit, scale in zip(plan.gather(rows), weights, units, scales, strict=True):
            weighted = grad[:, :2]
            weight_grads.append((weighted * unit).sum(0).sum(1))  # in this order both sums run along memory
            grad[:, :2] = unit_rms_backward(weighted * weight_2P[:, None], unit, scale)
            projection_grads.append(grad.flatten(1))
        return None, None, None, *projection_grads, *weight_grads
