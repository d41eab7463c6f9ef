"""Bytes that training takes on one GPU: the state that lasts, and what the backward pass keeps of a pack.

State, W being all weights, T those that are trained, R those of them that a gradient reaches (nothing does of the last
block's text half), and S the GPUs that share a copy (FSDP2; by default those of a node of eight):

    (4·W weights + 4·R gradients + R·(8 AdamW, 4 Muon's matrices, 2 in 8 bits) + 4·T averages) / S
    + what is gathered to compute with: where S > 1, all outside the blocks and two blocks; alone, autocast's copies

Activations kept per token and block, in elements of the dtype that is computed in, d being the width and h the MLP's:

    nothing recomputed 15·d + 4·h      selective 7·d + 2·h      full d

and with selective and full one block's 15·d + 4·h on top, while it is computed again. One of these d is the copy of the
values that variable-length kernels ask for, and one the MLP's input, which each of its two products casts: in float32,
where there is neither, it is 13·d + 4·h.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

from lens_train.optim.build import is_hidden_matrix
from lens_train.watch.flops import meta_batch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lens_train.parallel.config import ParallelConfig
    from lens_train.stages.train.config import TrainStageConfig

__all__ = ["StateBytes", "activation_bytes", "reached_parameters", "state_bytes"]

NODE = 8


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """What one GPU holds from step to step, and what is gathered for a moment."""

    weights: float
    gradients: float
    optimizer: float
    averages: float
    gathered: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(astuple(self))


def reached_parameters(model: Any) -> set[str]:
    """The names of the parameters that a gradient reaches, by a backward pass without numbers.

    Args:
        model: the denoiser on the meta device, with adapters if there shall be some.
    """
    model.forward_ragged(meta_batch(model.config, 1, 1, 1)).sum().backward()
    names = {name for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return names


def state_bytes(config: TrainStageConfig, model: Any, reached: set[str], gpus: int) -> StateBytes:
    """The state on each of so many GPUs.

    Args:
        config: of the stage.
        model: the denoiser, with adapters if there shall be some.
        reached: the names of its parameters that a gradient reaches.
        gpus: how many train together.
    """
    named = list(model.named_parameters())
    replicate, shard = config.parallel.replicate, config.parallel.shard
    shared = shard or (max(1, gpus // replicate) if replicate else min(gpus, NODE))
    everything = sum(p.numel() for _, p in named)
    block = sum(p.numel() for p in model.transformer_blocks[0].parameters())
    width = _width(config.parallel)
    if shared > 1:
        gathered = width * (everything - (len(model.transformer_blocks) - 2) * block)
    else:
        gathered = width * everything if width < 4 else 0
    optimizer = 0.0
    for name, p in named:
        if name in reached:
            muon = config.optimizer.type == "muon" and is_hidden_matrix(name, p)
            # AdamW counts the steps of every tensor in a number of its own.
            optimizer += p.numel() * (4 if muon else 2 if config.optimizer.type == "adamw-8bit" else 8) + 4 * (not muon)
    return StateBytes(
        weights=4 * everything / shared,
        gradients=4 * sum(p.numel() for name, p in named if name in reached) / shared,
        optimizer=optimizer / shared,
        averages=4 * sum(p.numel() for _, p in named if p.requires_grad) / shared,
        gathered=gathered,
    )


def activation_bytes(parallel: ParallelConfig, fields: Mapping[str, Any], tokens: float) -> float:
    """What the backward pass keeps of a pack of so many tokens.

    Args:
        parallel: what is recomputed, and the precision.
        fields: of the denoiser.
        tokens: of images and captions.
    """
    d = fields["num_attention_heads"] * fields["attention_head_dim"]
    h, blocks, width = int(d / 3 * 8), fields["num_layers"], _width(parallel)
    whole = (15 if width < 4 else 13) * d + 4 * h
    policy = parallel.activation_checkpointing
    if policy == "none":
        kept = blocks * whole
    elif policy == "budget":
        kept = int(blocks * whole * (parallel.activation_budget or 0)) + whole
    else:
        kept = blocks * (d if policy == "full" else 7 * d + 2 * h) + whole
    return float(width) * tokens * kept


def _width(parallel: ParallelConfig) -> int:
    """Bytes of a number that is computed with, on a GPU."""
    return 4 if parallel.precision == "fp32" else 2
