"""A tensor that may be sharded: the part of it that lies here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["local"]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, in the same memory; all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
