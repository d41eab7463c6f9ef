"""What the backward pass keeps of a block's activations, and what it computes again.

none       everything is kept
selective  the results of matrix products and of attention are kept, the cheap rest is computed again
full       only the block's inputs are kept: a third more FLOPs
budget     a compiler chooses what to keep, within a share of the memory
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from lens_train.parallel.config import ParallelConfig

__all__ = ["checkpoint_activations"]

KEPT = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "flex_attention",
)


def checkpoint_activations(blocks: Iterable[nn.Module], settings: ParallelConfig) -> None:
    """Have blocks recompute as configured, in place: no wrapper, so parameters keep their names."""
    policy = settings.activation_checkpointing
    if settings.activation_budget is not None:
        torch._functorch.config.activation_memory_budget = settings.activation_budget
    if policy not in {"selective", "full"}:
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in a block is random
    if policy == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _decide)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, **options)


def _decide(_context: Any, operation: Any, *_arguments: Any, **_keywords: Any) -> CheckpointPolicy:
    name = operation.name() if callable(getattr(operation, "name", None)) else str(operation)
    return CheckpointPolicy.MUST_SAVE if name.split(".")[0] in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
