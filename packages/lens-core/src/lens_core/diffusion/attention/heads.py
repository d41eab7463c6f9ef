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

    from lens_core.diffusion.attention.plan import AttentionPlan

__all__ = ["joint_heads", "rotate"]


def joint_heads(
    projections: Sequence[Tensor], weights: Sequence[Tensor], rope_RP: Tensor, plan: AttentionPlan, *, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [R, A, P].

    Args:
        projections: for each stream [N, 3·D], all of q, then k, then v, each head after head.
        weights: for each stream the weights [2, P] of the queries' and the keys' RMS norm, shared by all heads.
        rope_RP: the rotation of each row, complex [R, 1, P/2].
        plan: the joint layout.
        eps: of the norms.
    """
    q, k, v = _JointHeads.apply(plan, rope_RP, eps, *projections, *weights)
    return q, k, v


def rotate(x_RAP: Tensor, rope_RP: Tensor) -> Tensor:
    """Rotate adjacent channel pairs (2k, 2k+1), in float32 at least."""
    exact = torch.promote_types(x_RAP.dtype, torch.float32)
    pairs = torch.view_as_complex(x_RAP.to(exact).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope_RP).flatten(-2).to(x_RAP.dtype)


class _JointHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: AttentionPlan, rope_RP: Tensor, eps: float, *inputs: Tensor) -> tuple[Tensor, ...]:
        half = len(inputs) // 2
        projections, weights = inputs[:half], inputs[half:]
        p = weights[0].shape[-1]
        units, scales, joined = [], [], []
        for qkv_ND, weight_2P in zip(projections, weights, strict=True):
            qkv = qkv_ND.unflatten(-1, (3, -1, p))
            scale = rms_scale(qkv[:, :2], eps)
            unit = (qkv[:, :2] * scale).to(qkv_ND.dtype)
            joined.append(torch.cat([(unit * weight_2P[:, None]).to(unit.dtype), qkv[:, 2:]], dim=1))
            units.append(unit)
            scales.append(scale)
        rows = plan.scatter(*joined)
        qk = rotate(rows[:, :2], rope_RP[:, None])
        ctx.plan = plan
        ctx.save_for_backward(rope_RP, *weights, *units, *scales)
        return qk[:, 0], qk[:, 1], rows[:, 2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rope_RP, *saved = ctx.saved_tensors
        third = len(saved) // 3
        weights, units, scales = saved[:third], saved[third : 2 * third], saved[2 * third :]
        back_RP = rope_RP.conj()
        rows = torch.stack([rotate(grads[0], back_RP), rotate(grads[1], back_RP), grads[2]], dim=1)
        projection_grads, weight_grads = [], []
        for grad, weight_2P, unit, scale in zip(ctx.plan.gather(rows), weights, units, scales, strict=True):
            weighted = grad[:, :2]
            weight_grads.append((weighted * unit).sum((0, 2)))
            grad[:, :2] = unit_rms_backward(weighted * weight_2P[:, None], unit, scale)
            projection_grads.append(grad.flatten(1))
        return None, None, None, *projection_grads, *weight_grads
