"""Settings of the gpt-oss text encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from lens_core.config.base import ComponentConfig
from lens_core.diffusion.text_encoders.causal_lm.config import Layers, check_layers

__all__ = ["GptOssConfig"]


class GptOssConfig(ComponentConfig):
    """gpt-oss, frozen, with the prompt template of the released weights."""

    type: Literal["gpt-oss"] = "gpt-oss"
    path: str | None = Field(
        None, description="Where training takes it from: a model folder with a lens.json, as `lens import` leaves it."
    )
    layers: Layers = Field(
        (5, 11, 17, 23),
        description="Decoder layers whose outputs are the features, counted from 0; the final norm is left out.",
    )
    template: Literal["released", "custom"] = Field(
        "released",
        description="'released' insists on the template strings that the released weights were trained with; "
        "'custom' takes whatever lens.json holds.",
    )
    max_tokens: int = Field(512, gt=0, le=32768, description="Template and prompt together; the prompt is cut to fit.")

    _layers_differ = field_validator("layers")(check_layers)
