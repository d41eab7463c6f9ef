"""Gradient norms and update ratios of parts of a model: where training is too fast, too slow, or broken.

Parts are the ends of the denoiser, a third of its blocks each, and the text encoder where it is trained. The update
ratio is the norm of what a step adds to the weights over the norm of the weights; about 1e-3 is usual for AdamW.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["WeightGroups"]


class WeightGroups:
    """The trained parameters of some modules, in groups.

    Args:
        modules: by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.groups: dict[str, list[Tensor]] = {}
        for owner, module in modules.items():
            blocks = len(getattr(module, "transformer_blocks", ()))
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    self.groups.setdefault(_group(owner, name, blocks), []).append(parameter)

    def gradient_norms(self) -> dict[str, float]:
        """The norm of each group's gradient, over all ranks; all of them must ask."""
        return {
            f"grad_norm_{name}": _norm([p.grad for p in parameters if p.grad is not None])
            for name, parameters in self.groups.items()
        }

    def copy(self) -> dict[str, list[Tensor]]:
        """The weights as they are now; this takes as much memory as they do."""
        return {name: [p.detach().clone() for p in parameters] for name, parameters in self.groups.items()}

    @torch.no_grad()
    def update_ratios(self, before: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
        """How far each group has moved since `copy`, relative to its norm; all ranks must ask."""
        ratios = {}
        for name, parameters in self.groups.items():
            moved = [now.detach() - then for now, then in zip(parameters, before[name], strict=True)]
            ratios[f"update_ratio_{name}"] = _norm(moved) / max(_norm(before[name]), 1e-30)
        return ratios


def _group(owner: str, name: str, blocks: int) -> str:
    if owner != "transformer":
        return owner
    found = re.match(r"transformer_blocks\.(\d+)\.", name)
    return f"blocks{1 + 3 * int(found[1]) // blocks}" if found else "ends"


def _norm(tensors: Sequence[Tensor]) -> float:
    norm = nn.utils.get_total_norm(tensors) if tensors else torch.zeros(())
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
