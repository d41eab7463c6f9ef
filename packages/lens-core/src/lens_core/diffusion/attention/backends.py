"""What a backend is, and which there are."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from lens_core.diffusion.attention.plan import AttentionPlan

    Heads = tuple[Tensor, Tensor, Tensor]

__all__ = ["BACKENDS", "AttentionBackend", "attention_backend"]

BACKENDS = {
    "reference": "lens_core.diffusion.attention.reference:ReferenceAttention",
    "varlen": "lens_core.diffusion.attention.varlen:VarlenAttention",
    "flex": "lens_core.diffusion.attention.flex:FlexAttention",
}


class AttentionBackend(Protocol):
    """Attention within segments, scale 1/√P, every token of a segment visible to all of it."""

    def plan(self, *lengths: Sequence[int], device: torch.device) -> Any:
        """The plan of a batch: for each stream the tokens of each segment, and where the buffers live."""
        ...

    def __call__(self, sections: Sequence[Heads], plan: AttentionPlan) -> Tensor:
        """Attend: queries, keys and values of each section of the plan's joint layout to all rows [R, A, P]."""
        ...


def attention_backend(name: str) -> AttentionBackend:
    """The backend of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in BACKENDS:
        raise ConfigError(f"there is no attention backend {name!r}; there are {', '.join(BACKENDS)}")
    module, attribute = BACKENDS[name].split(":")
    backend: AttentionBackend = getattr(import_module(module), attribute)()
    return backend
