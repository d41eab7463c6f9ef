"""What a sample costs to train on, as a polynomial of its tokens.

A sample of n image tokens and m text tokens takes

    per_sample + a·n + b·m + c·(n + m)² + d·m²

FLOPs: modulation, linears of the image and of the text stream, joint attention, and (where a text encoder is trained
too) attention among the text alone. The coefficients are read off the exact formula of `lens_core.diffusion.flops` by
differences, so that there is one formula, and they follow it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lens_core.diffusion.flops import denoiser_flops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CostModel"]


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """FLOPs of one training step per sample (forward and backward, no recomputation).

    Args:
        per_sample: whatever the size.
        a: per image token.
        b: per text token.
        c: per pair of tokens, image or text.
        d: per pair of text tokens besides: a trainable text encoder's attention.
    """

    per_sample: float
    a: float
    b: float
    c: float
    d: float = 0.0

    def __call__(self, image_tokens: Any, text_tokens: Any) -> Any:
        """FLOPs of a sample, or of each sample of two arrays (float64)."""
        tokens = image_tokens + text_tokens
        return (
            self.per_sample
            + self.a * image_tokens
            + self.b * text_tokens
            + self.c * (tokens * tokens)
            + self.d * (text_tokens * text_tokens)
        )

    @classmethod
    def of(
        cls, transformer: Mapping[str, Any], text_encoder: Callable[[list[int]], float] = lambda lengths: 0.0
    ) -> CostModel:
        """The model of a Lens denoiser, and of its text encoder if that is trained.

        Args:
            transformer: the denoiser's `config`.
            text_encoder: FLOPs of prompts of these lengths, at most quadratic: the encoder's `training_flops`.
        """
        return cls.fit(lambda n, m: denoiser_flops(transformer, [n], [m]) + text_encoder([m]))

    @classmethod
    def fit(cls, flops: Callable[[int, int], float]) -> CostModel:
        """The model of any formula of image and text tokens that is such a polynomial."""
        # Second differences are twice the squares' coefficients; what remains is linear.
        per_sample = flops(0, 0)
        c = (flops(2, 0) - 2 * flops(1, 0) + per_sample) / 2
        d = (flops(0, 2) - 2 * flops(0, 1) + per_sample) / 2 - c
        return cls(
            per_sample=per_sample,
            a=flops(1, 0) - per_sample - c,
            b=flops(0, 1) - per_sample - c - d,
            c=c,
            d=d,
        )
