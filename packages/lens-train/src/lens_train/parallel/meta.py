"""A module without its numbers: to count with, or to be filled later."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from typing import TypeVar

    M = TypeVar("M", bound=nn.Module)

__all__ = ["meta_copy"]


def meta_copy(module: M) -> M:
    """The same module on the meta device; it takes no memory for its weights, also not while it is made."""
    known: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        known[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        known[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, known)
