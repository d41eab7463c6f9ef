"""Built-in samplers, and how one is followed from noise to image."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lens_core.contracts.diffusion import Sampler

__all__ = ["follow"]


def follow(sampler: Sampler, velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor) -> Tensor:
    """Where a sampler comes to from `x` along `times`, when it is told `velocity(x, t)` wherever it asks."""
    walk = sampler.walk(x, times)
    try:
        asked = next(walk)
        while True:
            asked = walk.send(velocity(*asked))
    except StopIteration as end:
        reached: Tensor = end.value
        return reached
