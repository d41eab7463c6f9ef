"""Everything that training changes, as one flat dictionary of tensors.

    transformer/proj_out.weight                     weights and buffers
    ema/transformer/proj_out.weight                 their average
    optimizer/transformer/proj_out.weight/exp_avg   what an optimiser keeps for each parameter

Names are the modules' own, so a state fits any number of ranks and any grouping of parameters. What is no tensor
(counters, settings) is `meta` of `CheckpointStore`; an optimiser's settings come from the config.

An optimiser may keep its state in 8 bits, in blocks of what lies on its rank. Other numbers of ranks have other blocks,
so such a state is saved as the numbers that it stands for, and made of them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lens_train.optim.build import set_rate
from lens_train.parallel.tensors import local

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lens_train.optim.ema import Ema

__all__ = ["TrainingState"]


class TrainingState:
    """The tensors of a training run, where they are.

    Args:
        modules: by name. What is frozen and comes from elsewhere (a base model under adapters) can be left out of the
            state by `trainable_only`.
        optimizers: of their parameters.
        ema: the average of their weights, if there is one.
        trainable_only: keep only what has a gradient, and buffers out.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Iterable[torch.optim.Optimizer],
        ema: Ema | None = None,
        *,
        trainable_only: bool = False,
    ):
        self.modules = modules
        self.optimizers = list(optimizers)
        self.ema = ema
        self.trainable_only = trainable_only

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name: not copies, but for what is kept in 8 bits."""
        found: dict[str, Tensor] = {}
        for module_name, module in self.modules.items():
            trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
            for name, tensor in module.state_dict().items():
                if name in trainable or not self.trainable_only:
                    found[f"{module_name}/{name}"] = tensor.detach()
        if self.ema is not None:
            found |= {f"ema/{name}": tensor for name, tensor in self.ema.averages.items()}
        found |= {name: _plain(value) for name, value in self._kept()}
        return found

    @torch.no_grad()
    def quantise(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what was loaded into copies."""
        for name, value in self._kept():
            own = local(value)
            if not _is_plain(own):
                own.copy_(local(tensors[name]).to(own.device))

    def make_room(self, names: Iterable[str]) -> None:
        """Have fresh optimisers make the state that a checkpoint with these names has: by a step that moves nothing."""
        kept = {name.rpartition("/")[0] for name in names if name.startswith("optimizer/")}
        for optimizer in self.optimizers:
            fresh = [
                parameter
                for name, parameter, owner in self._moved()
                if owner is optimizer and f"optimizer/{name}" in kept and not owner.state.get(parameter)
            ]
            rates = [float(group["lr"]) for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                set_rate(group, 0.0)
            for parameter in fresh:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                set_rate(group, rate)
            for parameter in fresh:
                parameter.grad = None

    def _kept(self) -> list[tuple[str, Tensor]]:
        """What the optimisers keep, by name."""
        return [
            (f"optimizer/{name}/{key}", value)
            for name, parameter, optimizer in self._moved()
            for key, value in optimizer.state.get(parameter, {}).items()
        ]

    def _moved(self) -> list[tuple[str, Tensor, torch.optim.Optimizer]]:
        names = {
            parameter: f"{module_name}/{name}"
            for module_name, module in self.modules.items()
            for name, parameter in module.named_parameters()
        }
        return [
            (names[parameter], parameter, optimizer)
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]


def _is_plain(own: Tensor) -> bool:
    return type(own) is Tensor


def _plain(value: Tensor) -> Tensor:
    """A tensor that an optimiser keeps; if it does in 8 bits, a copy of the numbers that it stands for.

    A block's scale is its largest magnitude, which the codes reach at 1 but not at -1: their lowest stands for -0.993.
    Here it is -1, so that quantising the copy gives the same codes and the same scale, bit for bit.
    """
    own: Any = local(value)
    if _is_plain(own):
        return value
    table = own.qmap.clone()
    table[0] = table[0].round()
    numbers = (table[own.codes.int()].view(len(own.scale), -1) * own.scale[:, None]).view(own.shape)
    if not isinstance(value, DTensor):
        return numbers.cpu()  # where it is going: it is four times the size, and a device may have no room
    mesh, rows = value.device_mesh, value.placements
    return DTensor.from_local(numbers, mesh, rows, run_check=False, shape=value.shape, stride=value.stride())
