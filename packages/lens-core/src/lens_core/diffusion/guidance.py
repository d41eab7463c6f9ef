"""Classifier-free guidance.

Suffixes: N image tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["guide"]


def guide(cond_NC: Tensor, uncond_NC: Tensor, scale: float, *, rescale: bool) -> Tensor:
    """uncond + scale·(cond - uncond), in float32 at least.

    Args:
        cond_NC: velocity with the prompt.
        uncond_NC: velocity without it (or with a negative prompt).
        scale: 1 gives `cond_NC`.
        rescale: bring each token's vector back to the length it has in `cond_NC`, as the released model does; this
            keeps high scales from over-saturating.
    """
    exact = torch.promote_types(cond_NC.dtype, torch.float32)
    cond, uncond = cond_NC.to(exact), uncond_NC.to(exact)
    guided = uncond + scale * (cond - uncond)
    if rescale:
        length = guided.norm(dim=-1, keepdim=True)
        factor = cond.norm(dim=-1, keepdim=True) / length.clamp_min(1e-12)
        guided = torch.where(length > 0, guided * factor, guided)
    return guided.to(cond_NC.dtype)
