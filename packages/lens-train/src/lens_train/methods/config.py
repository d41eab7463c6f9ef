"""Settings of the method: what is moved."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lens_core.config.base import Config

__all__ = ["FullMethod", "LoraMethod", "MethodConfig"]


class FullMethod(Config):
    """Every weight is moved."""

    type: Literal["full"] = "full"


class LoraMethod(Config):
    """Small adapters beside some linears are moved; the model itself stays."""

    type: Literal["lora"] = "lora"
    kind: Literal["lora", "dora", "lokr"] = Field(
        "lora",
        description="'lora' adds a product of two thin matrices, 'dora' also sets the length of every row of the sum, "
        "'lokr' adds a Kronecker product, which needs far fewer numbers.",
    )
    rank: int = Field(16, gt=0, le=1024, description="Rank of the product; for 'lokr', of its second factor.")
    alpha: float | None = Field(
        None, gt=0, description="The adapter acts with alpha / rank; null takes the rank, so that this is 1."
    )
    targets: tuple[str, ...] = Field(
        ("img_qkv", "txt_qkv", "to_out.0", "to_add_out", "w1", "w2", "w3"),
        min_length=1,
        description="Linears that get an adapter: whole names, or the ends of names, of the denoiser's modules. By "
        "default attention and MLPs of both streams.",
    )


MethodConfig = Annotated[FullMethod | LoraMethod, Field(discriminator="type")]
