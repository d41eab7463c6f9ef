"""Training state on disk: everything that the next step depends on, so that a resumed run is the same run.

Tensors are safetensors, the rest is JSON inside their metadata: one file, written under a temporary name and renamed,
so that a kill leaves the old state or the new. It is private to the run that wrote it.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

__all__ = ["load_state", "save_state"]


def save_state(
    path: Path,
    *,
    modules: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    ema: list[Tensor],
    counters: dict[str, Any],
) -> None:
    """Write the state in one step."""
    tensors = {
        f"{name}/{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()
    }
    tensors |= {f"ema/{number:05d}": tensor for number, tensor in enumerate(ema)}
    for part, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{part}/{number}/{key}": value for key, value in state.items()}
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"counters": json.dumps(counters)})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def load_state(
    path: Path,
    *,
    modules: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    ema: list[Tensor],
) -> dict[str, Any]:
    """Put the state back in place and return the counters."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        counters: dict[str, Any] = json.loads(file.metadata()["counters"])
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    for number, tensor in enumerate(ema):
        tensor.copy_(tensors[f"ema/{number:05d}"])
    for part, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            where, _, rest = key.partition("/")
            if where == f"optimizer{part}":
                number, _, name = rest.partition("/")
                state.setdefault(int(number), {})[name] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return counters
