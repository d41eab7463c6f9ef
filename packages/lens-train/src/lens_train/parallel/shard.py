"""Shard modules over the ranks: FSDP2, block by block, with float32 weights and bfloat16 compute.

`shard` prepares a module in the order that its parts need: float8, activation checkpointing, compilation, and sharding
last, so that a block is gathered just before it computes and freed right after.

Gradients are *summed* over the ranks, not averaged: divide the loss by the count of the whole step, and a step is the
same whatever the number of ranks.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._functorch import config as compiler
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from lens_core.errors import MissingExtraError
from lens_core.specs import pip_line
from lens_train.parallel.activations import checkpoint_activations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_train.parallel.config import ParallelConfig
    from lens_train.parallel.world import World

__all__ = ["clip_gradients", "compute_dtype", "forget_gathered", "full_weights", "shard", "sync_gradients"]


def shard(module: nn.Module, world: World, settings: ParallelConfig) -> None:
    """Prepare a module for training, in place; parameters keep their names.

    Its blocks are what it holds as `transformer_blocks` or `layers`; a module without them is one block. Alone, nothing
    is sharded. The weights must be the same on all ranks, as those of one seed are.

    Args:
        module: on the device of this rank, in float32 (or float64, to test with).
        world: who takes part.
        settings: how.

    Raises:
        ConfigError: the settings do not fit the world.
        MissingExtraError: float8 without its library.
    """
    blocks = blocks_of(module)
    if settings.float8:
        use_float8(blocks)
    if settings.compile and settings.activation_checkpointing == "full":
        # The compiler cannot take a checkpoint within a block, so a denoiser that can lays its own around compiled
        # blocks. The small text encoder cannot, and keeps what little it has.
        lay_around: Any = getattr(module, "enable_gradient_checkpointing", None)
        if lay_around is not None:
            lay_around()
    else:
        checkpoint_activations(blocks, settings)
    if settings.compile:
        compile_blocks(module, blocks)
    mesh = world.mesh(settings)
    if mesh is None:
        return
    dtype = compute_dtype(settings, world.device)
    # Inputs are cast where they are used, by autocast: a timestep in bfloat16 would be another timestep.
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=None if dtype == torch.float32 else torch.float32,
        cast_forward_inputs=False,
    )
    # What an optimiser compiles takes sharded tensors. torch 2.13 keeps that on disk by their whole shape, and gives it
    # to ranks that hold another number of rows, which fail: "expected size 5==4".
    compiler.enable_autograd_cache = False
    # A block's result is a view of itself, and nobody changes it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    for part in [*blocks, module]:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    if hasattr(module, "forward_ragged"):
        register_fsdp_forward_method(module, "forward_ragged")


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The repeated part of a denoiser or of an encoder."""
    for name in ("transformer_blocks", "layers"):
        found = getattr(module, name, None)
        if isinstance(found, nn.ModuleList):
            return list(found)
    return []


def compute_dtype(settings: ParallelConfig, device: torch.device) -> torch.dtype:
    """What is computed in."""
    wants_bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if wants_bf16 else torch.float32


def compile_blocks(module: nn.Module, blocks: list[nn.Module]) -> None:
    """Compile each block once for any number of tokens: packs of all sizes, and of one, run the same code."""
    own: Any = getattr(module, "compile_blocks", None)
    if own is not None:
        own()
        return
    for block in blocks:
        block.compile(dynamic=True)


def use_float8(blocks: list[nn.Module]) -> None:
    """Matrix products of the blocks in float8, with a scale for each row.

    Raises:
        MissingExtraError: torchao is not installed.
    """
    try:
        float8: Any = importlib.import_module("torchao.float8")
    except ImportError as error:
        hint = pip_line("lens-train[float8]")
        raise MissingExtraError(
            f"parallel.float8 needs the library 'torchao', which is not installed; install it with: {hint}"
        ) from error
    # Kernels want sums over multiples of 16, and those of the weights' gradients go over a pack's tokens.
    config = replace(float8.Float8LinearConfig.from_recipe_name("rowwise"), pad_inner_dim=True)
    for block in blocks:
        float8.convert_to_float8_training(
            block,
            config=config,
            # Modulation sees one row per sample, too few to be worth it.
            module_filter_fn=lambda part, name: (
                "_mod" not in name and part.in_features % 16 == 0 and part.out_features % 16 == 0
            ),
        )


def sync_gradients(modules: Iterable[nn.Module], wanted: bool) -> None:
    """Whether the next backward pass sums gradients over the ranks; not needed before a step's last."""
    for module in modules:
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(wanted)


def forget_gathered(modules: Iterable[nn.Module]) -> None:
    """Free whole weights that a forward pass left gathered because no backward pass followed.

    The next pass would take them for the present ones, though the shards may have changed.
    """
    for module in modules:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def clip_gradients(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Scale gradients down to a norm and return the norm they had, over all ranks and the same on all.

    Where any rank's gradient is not finite the norm is not, so ranks that go by it skip the same steps.
    """
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@torch.no_grad()
def full_weights(module: nn.Module, world: World) -> dict[str, Tensor]:
    """The whole weights by name, on rank 0 and on the CPU; elsewhere nothing. All ranks must call this."""
    whole = {}
    for name, tensor in module.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if world.is_main:
            whole[name] = full.detach().to("cpu", copy=True)
    return whole
