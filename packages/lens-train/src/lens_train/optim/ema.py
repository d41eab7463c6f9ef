"""The average of the weights over the last steps, which is what a finished model has.

Where weights are sharded so is the average: each rank averages its own part, and nothing is communicated.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lens_train.parallel.tensors import local

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Ema"]


class Ema:
    """An exponential moving average of all trainable parameters.

    Args:
        modules: by name; averages are named `module/parameter`. Shard modules first.
        decay: share of the old average that each step keeps, once there are many.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float):
        named = {
            f"{module}/{name}": parameter
            for module, owner in modules.items()
            for name, parameter in owner.named_parameters()
            if parameter.requires_grad
        }
        self.decay = decay
        self.averages: dict[str, Tensor] = {name: p.detach().clone() for name, p in named.items()}
        self._averages = [local(average) for average in self.averages.values()]
        self._parameters: list[Tensor] = list(named.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, the first of which is number 0."""
        # Early on the average would mostly remember the initial weights, so its decay starts small.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights(), 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averages into the modules for a while."""
        with torch.no_grad():
            before = [weight.clone() for weight in self._weights()]
            torch._foreach_copy_(self._weights(), self._averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights(), before)

    def _weights(self) -> list[Tensor]:
        return [local(parameter.detach()) for parameter in self._parameters]
