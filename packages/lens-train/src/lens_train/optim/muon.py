"""Muon: momentum, orthogonalised (K. Jordan et al. 2024), for the matrices of hidden layers.

`torch.optim.Muon` orthogonalises in bfloat16, one matrix after another, which a CPU without bfloat16 units does some
fifty times slower than float32. This one works in the parameters' dtype on a CPU, and takes matrices of one shape
together. Where rows are sharded over ranks, each rank gathers an equal part of the matrices, and works on those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from lens_train.parallel.tensors import local

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Muon", "orthogonalise", "orthogonalise_sharded"]

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
            alike: dict[Any, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    layout = parameter.placements if isinstance(parameter, DTensor) else None
                    alike.setdefault((parameter.shape, layout), []).append(parameter)
            for (shape, _), own in alike.items():
                parameters, gradients = [local(p) for p in own], [local(p.grad) for p in own if p.grad is not None]
                momenta = [local(self._momentum(p)) for p in own]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                updates = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
                if isinstance(own[0], DTensor):
                    updates = orthogonalise_sharded(updates, own[0], group["steps"])
                else:
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


def orthogonalise_sharded(updates: Tensor, like: DTensor, steps: int) -> Tensor:
    """`orthogonalise` for matrices whose rows lie on several ranks: each rank does an equal part of the matrices.

    Args:
        updates: this rank's rows of every matrix [matrices, rows of this rank, columns].
        like: any of the sharded matrices.
        steps: Newton-Schulz iterations.
    """
    sharded = [dim for dim, placement in enumerate(like.placements) if placement.is_shard()]
    if not sharded:
        return orthogonalise(updates, steps)
    assert len(sharded) == 1, "rows are sharded over one dimension of the mesh"
    assert like.placements[sharded[0]] == Shard(0), "rows are sharded, not columns"
    group, me = like.device_mesh.get_group(sharded[0]), like.device_mesh.get_local_rank(sharded[0])
    ranks = group.size()
    matrices, own_rows, columns = updates.shape
    rows, mine = _split(like.shape[0], ranks), _split(matrices, ranks)
    # To each rank go our rows of its matrices; from each come its rows of ours.
    there = [count * own_rows * columns for count in mine]
    here = [mine[me] * count * columns for count in rows]
    received = updates.new_empty(sum(here))
    dist.all_to_all_single(received, updates.flatten(), here, there, group=group)
    whole = torch.cat(
        [part.view(mine[me], count, columns) for part, count in zip(received.split(here), rows, strict=True)], dim=1
    )
    if mine[me]:
        whole = orthogonalise(whole, steps)
    back = torch.cat([part.flatten() for part in whole.split(rows, dim=1)])
    result = torch.empty_like(updates).flatten()
    dist.all_to_all_single(result, back, there, here, group=group)
    return result.view_as(updates)


def _split(total: int, parts: int) -> list[int]:
    """Sizes as torch.chunk and DTensor cut them: all alike, but for the last ones."""
    size = -(-total // parts)
    return [max(0, min(size, total - number * size)) for number in range(parts)]
