"""Which parameter is moved by which optimiser, and how the learning rate runs."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lens_core.errors import MissingExtraError
from lens_core.specs import pip_line
from lens_train.optim.muon import Muon

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_train.optim.config import OptimizerConfig

__all__ = ["Optimizers", "is_hidden_matrix", "learning_rate_factor", "set_rate"]


class Optimizers:
    """AdamW, and Muon where the config says so, stepped together."""

    def __init__(self, config: OptimizerConfig, modules: Iterable[nn.Module]):
        self.config = config
        named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
        hidden = [p for name, p in named if config.type == "muon" and is_hidden_matrix(name, p)]
        chosen = {id(p) for p in hidden}
        rest = [p for _, p in named if id(p) not in chosen]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if config.type == "adamw-8bit":
            adamw = eight_bit_adamw(groups, lr=config.lr, betas=config.betas)
        else:
            adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
        self.parts: list[torch.optim.Optimizer] = [adamw]
        self.peaks = [config.lr]
        if hidden:
            self.parts.append(Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay))
            self.peaks.append(config.muon_lr)

    def set_factor(self, factor: float) -> None:
        """Scale every peak learning rate."""
        for part, peak in zip(self.parts, self.peaks, strict=True):
            for group in part.param_groups:
                set_rate(group, peak * factor)

    def step(self) -> None:
        """Move the parameters."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a group of parameters, which the 8-bit optimiser keeps in a tensor."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def learning_rate_factor(config: OptimizerConfig, step: int, share_done: float) -> float:
    """Linear warm-up by steps, times the schedule by the share of the budget that is used.

    wsd: a plateau and a linear fall to zero over the last share · constant: 1 · linear: from 1 to 0 ·
    cosine: (1 + cos(π·share)) / 2.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    done = min(share_done, 1.0)
    match config.schedule:
        case "constant":
            return warm
        case "linear":
            return warm * (1.0 - done)
        case "cosine":
            return warm * (1.0 + math.cos(math.pi * done)) / 2
    left = (1.0 - done) / config.decay_fraction if config.decay_fraction else 1.0
    return warm * min(1.0, left)


def eight_bit_adamw(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW whose two averages are kept in 8 bits, quantised in blocks (arXiv 2110.02861).

    Raises:
        MissingExtraError: torchao is not installed.
    """
    try:
        torchao: Any = importlib.import_module("torchao.optim")
    except ImportError as error:
        hint = pip_line("lens-train[eight-bit]")
        raise MissingExtraError(
            f"adamw-8bit needs the library 'torchao', which is not installed; install it with: {hint}"
        ) from error
    adamw: torch.optim.Optimizer = torchao.AdamW8bit(groups, lr=lr, betas=betas)
    return adamw


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon moves a parameter of that name, where it is asked for."""
    # The modulation starts at zero and sees one row per sample, and an adapter's matrices are factors of what is added:
    # AdamW suits them better.
    others = ("_mod.", ".lora_", ".lokr_")
    return parameter.ndim == 2 and ("blocks." in name or "layers." in name) and not any(o in name for o in others)
