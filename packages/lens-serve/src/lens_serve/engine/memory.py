"""How much memory this process holds."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch

__all__ = ["device_bytes", "resident_bytes"]

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Of the host's memory; where the system does not tell (macOS), the most that it ever was."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_bytes(device: torch.device) -> int:
    """Of the device's memory in tensors; 0 where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return 0
