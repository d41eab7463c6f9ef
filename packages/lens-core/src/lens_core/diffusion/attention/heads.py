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
        return turned.flatten(-2).to(x_RAP.dtype)
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
    """Written twice: in place, and for a compiler, which fuses look-ups but nothing that is written in pieces."""

    @staticmethod
    def forward(ctx: Any, plan: AttentionPlan, rope_RP2: Tensor, eps: float, *inputs: Tensor) -> tuple[Tensor, ...]:
        half = len(inputs) // 2
        weights = inputs[half:]
        streams = [qkv_ND.unflatten(-1, (3, -1, weights[0].shape[-1])) for qkv_ND in inputs[:half]]
        scales = [rms_scale(qkv[:, :2], eps) for qkv in streams]
        units = [(qkv[:, :2] * scale).to(qkv.dtype) for qkv, scale in zip(streams, scales, strict=True)]
        ctx.plan = plan
        ctx.save_for_backward(rope_RP2, *weights, *units, *scales)
        weighted = ((unit * weight[:, None]).to(unit.dtype) for unit, weight in zip(units, weights, strict=True))
        if torch.compiler.is_compiling():
            pairs = list(weighted)
            q, k = (rotate(plan.scatter(*(pair[:, i] for pair in pairs)), rope_RP2) for i in range(2))
            return q, k, plan.scatter(*(qkv[:, 2] for qkv in streams))
        rows = plan.blank(streams[0])
        for place, qkv, pair in zip(plan.places or (), streams, weighted, strict=True):
            rows[:, :2].index_copy_(0, place, pair)
            rows[:, 2].index_copy_(0, place, qkv[:, 2])
        rotate(rows[:, :2], rope_RP2[:, None], out=rows[:, :2])
        return tuple(x for section in rows.split(plan.sections) for x in section.unbind(1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan, (rope_RP2, *saved) = ctx.plan, ctx.saved_tensors
        third = len(saved) // 3
        normed = list(zip(saved[:third], saved[third : 2 * third], saved[2 * third :], strict=True))
        projection_grads, weight_grads = [], []
        if torch.compiler.is_compiling():
            q, k, v = grads
            pairs = zip(*(plan.gather(rotate(x, rope_RP2, back=True)) for x in (q, k)), strict=True)
            for pair, v_NAP, (weight_2P, unit, scale) in zip(pairs, plan.gather(v), normed, strict=True):
                parts = list(zip(pair, weight_2P, unit.unbind(1), scale.unbind(1), strict=True))
                weight_grads.append(torch.stack([(grad * unit).sum((0, 1)) for grad, _, unit, _ in parts]))
                qk = [unit_rms_backward(grad * weight_P, unit, scale) for grad, weight_P, unit, scale in parts]
                projection_grads.append(torch.stack([*qk, v_NAP], 1).flatten(1))
            return None, None, None, *projection_grads, *weight_grads
        rows = grads[0].new_empty(plan.rows, 3, *grads[0].shape[1:])
        sections = zip(rows.split(plan.sections), rope_RP2.split(plan.sections), strict=True)
        for number, (section, rope) in enumerate(sections):
            q, k, v = grads[3 * number : 3 * number + 3]
            section[:, 0], section[:, 1], section[:, 2] = rotate(q, rope, back=True), rotate(k, rope, back=True), v
        for grad, (weight_2P, unit, scale) in zip(plan.gather(rows), normed, strict=True):
            weighted = grad[:, :2]
            weight_grads.append((weighted * unit).sum(0).sum(1))  # in this order both sums run along memory
            grad[:, :2] = unit_rms_backward(weighted * weight_2P[:, None], unit, scale)
            projection_grads.append(grad.flatten(1))
        return None, None, None, *projection_grads, *weight_grads
