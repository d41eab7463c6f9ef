"""A LoKr as the LoRA that it is equal to (LoKr: arXiv 2309.14859, section 3.2).

Suffixes: O output and I input channels of a linear, R rank.

A LoKr adds kron(w1, w2) to a weight, each of the two whole (`w1`) or as a product of two (`w1_a @ w1_b`). Since
kron(a·b, c·d) = kron(a, c)·kron(b, d), the sum is a LoRA whose rank is the product of theirs. A whole factor counts
as itself times an identity, on the side where that is smaller, and one of a higher rank than its matrix can have as a
whole: no LoRA here has a higher rank than its linear needs, whatever the file says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["kronecker_factors"]


def kronecker_factors(factors: Mapping[str, Tensor], shape: tuple[int, int]) -> tuple[Tensor, Tensor, int | None]:
    """A and B of the LoRA, before alpha, and the rank that the LoKr's own alpha is over.

    Args:
        factors: matrices by name: `w1`, or `w1_a` and `w1_b`; `w2`, or `w2_a` and `w2_b`.
        shape: (O, I) of the linear.

    Returns:
        `down_RI`, `up_OR`, and the rank; None where both factors are whole.

    Raises:
        ValueError: a factor is missing, or they do not give a matrix of that shape; the message is the second half of
            a sentence whose subject is the LoKr.
    """
    (up1, down1), (up2, down2) = _halves(factors, "w1"), _halves(factors, "w2")
    made = (len(up1) * len(up2), down1.shape[1] * down2.shape[1])
    if made != shape:
        raise ValueError(f"makes a matrix of shape {made}, not {shape}")
    # As readers agree: the second factor's rank if it has one, else the first's.
    rank = next((len(factors[name]) for name in ("w2_b", "w1_b") if name in factors), None)
    return torch.kron(down1, down2), torch.kron(up1, up2), rank


def _halves(factors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    whole, up, down = factors.get(name), factors.get(f"{name}_a"), factors.get(f"{name}_b")
    if (whole is None) == (up is None or down is None):
        raise ValueError(f"needs either lokr_{name}, or lokr_{name}_a and lokr_{name}_b")
    for tensor in (whole, up, down):
        if tensor is not None and (tensor.ndim != 2 or 0 in tensor.shape):
            raise ValueError(f"has a lokr_{name} of shape {tuple(tensor.shape)}, which is no matrix")
    if whole is None:
        assert up is not None
        assert down is not None
        if up.shape[1] != len(down):
            shapes = f"{tuple(up.shape)} to a lokr_{name}_b of {tuple(down.shape)}"
            raise ValueError(f"has a lokr_{name}_a of shape {shapes}")
        if len(down) <= min(len(up), down.shape[1]):
            return up, down
        whole = up @ down
    rows, columns = whole.shape
    identity = torch.eye(min(rows, columns), dtype=whole.dtype)
    return (identity, whole) if rows < columns else (whole, identity)
