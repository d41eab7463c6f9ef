"""Which parameter is moved by which optimiser, and how the learning rate runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from lens_train.optim.muon import Muon

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lens_train.optim.config import OptimizerConfig

__all__ = ["Optimizers", "learning_rate_factor"]


class Optimizers:
    """AdamW, and Muon where the config says so, stepped together."""

    def __init__(self, config: OptimizerConfig, modules: Iterable[nn.Module]):
        self.config = config
        named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
        hidden = [p for name, p in named if config.type == "muon" and _is_hidden_matrix(name, p)]
        chosen = {id(p) for p in hidden}
        rest = [p for _, p in named if id(p) not in chosen]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=True
            )
        ]
        self.peaks = [config.lr]
        if hidden:
            self.parts.append(Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay))
            self.peaks.append(config.muon_lr)

    def set_factor(self, factor: float) -> None:
        """Scale every peak learning rate."""
        for part, peak in zip(self.parts, self.peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * factor

    def step(self) -> None:
        """Move the parameters."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)


def learning_rate_factor(config: OptimizerConfig, step: int, share_done: float) -> float:
    """Linear warm-up by steps, a plateau, and a linear fall to zero over the last share of the budget."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    left = (1.0 - share_done) / config.decay_fraction if config.decay_fraction else 1.0
    return warm * max(0.0, min(1.0, left))


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    # The modulation starts at zero and sees one row per sample: AdamW suits it better.
    return parameter.ndim == 2 and ("blocks." in name or "layers." in name) and "_mod." not in name
