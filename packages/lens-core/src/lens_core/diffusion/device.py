"""Choosing a device by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lens_core.errors import ConfigError, LensError

if TYPE_CHECKING:
    from torch import Tensor

    from lens_core.config.devices import DeviceName

__all__ = ["layout_device", "pick_device", "pick_dtype", "send"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: DeviceName) -> torch.device:
    """The device of that name; `auto` takes a GPU where there is one.

    Raises:
        LensError: there is no such device, or this machine does not have it.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if has[kind]))
    if name not in has:
        raise ConfigError(f"device {name!r} is not one of auto, {', '.join(has)}")
    if not has[name]:
        raise LensError(f"device: {name} is not available on this machine; use auto or cpu")
    return torch.device(name)


def layout_device(device: torch.device) -> torch.device:
    """Where to work out the places of a batch's tokens: on a CUDA device, so that it need not wait for the CPU.

    For all others it is the CPU, as there is little to work out.
    """
    return device if device.type == "cuda" else torch.device("cpu")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; unlike `to`, without waiting until a GPU has done what it was asked before."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pick_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of that name; None stays None.

    Raises:
        ConfigError: there is none.
    """
    if name is not None and name not in _DTYPES:
        raise ConfigError(f"dtype {name!r} is not one of {', '.join(_DTYPES)}")
    return _DTYPES[name] if name else None
