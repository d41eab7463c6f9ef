"""Random numbers by counter: the same (seed, index) gives the same numbers everywhere.

A sample's noise depends on nothing but its own index: not on the batch it is in, the device, the number of ranks, or
what was drawn before. Training indexes by (epoch, image key), sampling and serving by image number, so that
`lens generate --seed 7` and a server's seed 7 are the same picture.

The bits are those of Philox 4x64-10 (Salmon et al. 2011) keyed by a hash of seed and index. NumPy promises that a bit
generator's raw output never changes (NEP 19), which it does not promise of `standard_normal`, and torch's generators
promise nothing across versions; so the transforms are written out here, in float64.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Index", "noise", "uniform"]

Index = int | str | tuple[int | str, ...]
"""What a stream of random numbers belongs to."""


def uniform(seed: int, index: Index, shape: Sequence[int]) -> Tensor:
    """Uniform numbers above 0 and up to 1, float64 on the CPU."""
    return torch.from_numpy(_uniform(seed, index, math.prod(shape)).reshape(tuple(shape)))


def noise(seed: int, index: Index, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers, float32 on the CPU, by the Box-Muller transform."""
    count = math.prod(shape)
    half = (count + 1) // 2
    u = _uniform(seed, index, 2 * half)
    radius = np.sqrt(-2.0 * np.log(u[:half]))
    angle = 2.0 * math.pi * u[half:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return torch.from_numpy(normal.astype(np.float32).reshape(tuple(shape)))


def _uniform(seed: int, index: Index, count: int) -> np.ndarray:
    parts = index if isinstance(index, tuple) else (index,)
    digest = hashlib.sha256(json.dumps([seed, *parts], separators=(",", ":")).encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    raw = np.random.Philox(key=key).random_raw(count)
    # 53 bits, shifted by half a step so that 0, which has no logarithm, never occurs; the largest is rounded to 1.
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
