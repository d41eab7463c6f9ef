"""Everything that training changes, as one flat dictionary of tensors.

    transformer/proj_out.weight                     weights and buffers
    ema/transformer/proj_out.weight                 their average
    optimizer/transformer/proj_out.weight/exp_avg   what an optimiser keeps for each parameter

Names are the modules' own, so a state fits any number of ranks and any grouping of parameters. What is no tensor
(counters, settings) is `meta` of `CheckpointStore`; an optimiser's settings come from the config.
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
        """All of them by name: not copies."""
        found: dict[str, Tensor] = {}
        for module_name, module in self.modules.items():
            trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
            for name, tensor in module.state_dict().items():
                if name in trainable or not self.trainable_only:
                    found[f"{module_name}/{name}"] = tensor.detach()
        if self.ema is not None:
            found |= {f"ema/{name}": tensor for name, tensor in self.ema.averages.items()}
        for name, parameter, optimizer in self._moved():
            for key, value in optimizer.state.get(parameter, {}).items():
                found |= {f"optimizer/{name}/{part}": tensor for part, tensor in _parts(key, value).items()}
        return found

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


def _parts(key: str, value: Tensor) -> dict[str, Tensor]:
    """The plain tensors of a state, by name: itself, or the codes and the scales of one that is kept in 8 bits."""
    own: Any = local(value)
    if type(own) is Tensor:
        return {key: value}
    parts: dict[str, Tensor] = {f"{key}.codes": own.codes, f"{key}.scale": own.scale}
    if isinstance(value, DTensor):  # rows lie one after another, and so do the scales of their blocks
        return {name: DTensor.from_local(part, value.device_mesh, value.placements) for name, part in parts.items()}
    return parts
