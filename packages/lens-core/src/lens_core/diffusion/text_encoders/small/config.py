"""Settings of the small text encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lens_core.config.base import ComponentConfig

__all__ = ["SmallTextEncoderConfig"]


class SmallTextEncoderConfig(ComponentConfig):
    """A small transformer over byte-pair tokens, trained together with the denoiser."""

    type: Literal["small"] = "small"
    vocab_size: int = Field(
        1024, ge=300, le=65536, description="Byte-pair tokens; the vocabulary is learned from the captions."
    )
    width: int = Field(128, gt=0, description="Width of the features.")
    layers: int = Field(1, ge=0, description="Transformer layers over the token embeddings.")
    heads: int = Field(4, gt=0, description="Attention heads.")
    max_tokens: int = Field(256, gt=0, le=4096, description="Longer prompts are cut off here.")

    @model_validator(mode="after")
    def _heads_fit(self) -> SmallTextEncoderConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self
