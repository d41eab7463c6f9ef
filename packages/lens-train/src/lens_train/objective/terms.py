"""Terms of the objective besides the flow-matching loss: each reads hidden image tokens, by a part that it trains.

Suffixes: N image tokens of a batch, D model width, F features, G samples, B images of one size, H and W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

__all__ = ["Term"]


class Term(Protocol):
    """One term.

    Attributes:
        name: of its losses in the metrics, after `loss_`, and of its module in the saved state.
        weight: in what is minimised.
        until: steps that it is there for; None: all.
        block: the block whose image tokens it reads, the first being 1.
        module: what it trains, which the finished model does not have.
    """

    name: str
    weight: float
    until: int | None
    block: int
    module: nn.Module

    def goals(self, pixels_B3HW: Tensor) -> Tensor:
        """What the tokens of clean images shall tell, [B, h·w, F]; pixels are 0 to 255. It takes no gradient."""
        ...

    def losses(self, hidden_ND: Tensor, goals_NF: Tensor, lengths: Sequence[int]) -> Tensor:
        """The loss [G] of samples with so many tokens each."""
        ...

    def training_flops(self, image_tokens: int) -> float:
        """Matmul FLOPs of the trained part, forward and backward."""
        ...
