"""Choosing a device by name."""

from __future__ import annotations

from typing import Literal

import torch

from lens_core.errors import LensError

__all__ = ["DeviceName", "pick_device"]

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def pick_device(name: DeviceName) -> torch.device:
    """The device of that name; `auto` takes a GPU where there is one.

    Raises:
        LensError: this machine does not have it.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if has[kind]))
    if not has[name]:
        raise LensError(f"device: {name} is not available on this machine; use auto or cpu")
    return torch.device(name)
