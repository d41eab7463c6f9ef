"""Muon: momentum, orthogonalised (K. Jordan et al. 2024), for the matrices of hidden layers.

`torch.optim.Muon` orthogonalises in bfloat16, one matrix after another, which a CPU without bfloat16 units does some
fifty times slower than float32. This one works in the parameters' dtype on a CPU, and takes matrices of one shape
together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Muon", "orthogonalise"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose every update is brought to singular values near 1.

    The step is scaled by 0.2·√max(rows, columns), so that learning rates and weight decay mean about what they do for
    AdamW (arXiv 2502.16982, section 2.2).

    Args:
        params: matrices.
        lr: learning rate.
        momentum: decay of the running gradient.
        weight_decay: decoupled.
        steps: Newton-Schulz iterations.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append((parameter, parameter.grad))
            for shape, pairs in shapes.items():
                parameters, gradients = [parameter for parameter, _ in pairs], [gradient for _, gradient in pairs]
                momenta = [self._momentum(parameter) for parameter in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                updates = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
                updates = orthogonalise(updates, group["steps"])
                if group["weight_decay"]:
                    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """Bring the singular values of each matrix [..., rows, columns] near 1, by a quintic Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    x = matrices if matrices.device.type == "cpu" else matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.flatten(0, -3) if x.ndim > 2 else x[None]
    for _ in range(steps):
        # x ← (a + b·g + c·g²)·x with g = x·xᵀ: what is added, is added to the small matrix.
        gram = torch.bmm(x, x.mT)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        x = torch.bmm(factor, x)
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)
