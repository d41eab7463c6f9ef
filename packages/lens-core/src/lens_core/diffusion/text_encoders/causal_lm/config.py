"""Settings of a causal language model as a text encoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from lens_core.config.base import ComponentConfig

__all__ = ["CausalLMConfig", "Layers", "check_layers"]

Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


def check_layers(layers: tuple[int, ...]) -> tuple[int, ...]:
    """The same layers, or a ValueError if one is named twice."""
    if len(set(layers)) < len(layers):
        raise ValueError(f"{list(layers)} names a layer twice")
    return layers


class CausalLMConfig(ComponentConfig):
    """A pretrained causal language model (Qwen3 and its kin), frozen; the features are hidden states."""

    type: Literal["causal-lm"] = "causal-lm"
    path: str | None = Field(
        None, description="Where training takes the model from: a folder, or the name of a repository on the Hub."
    )
    layers: Layers = Field(
        description="Decoder layers whose outputs are the features, counted from 0; the final norm is left out."
    )
    template: str = Field(
        "{prompt}",
        description="Text around the prompt, which stands where {prompt} is. A begin-of-text token, if the model "
        "wants one, is written out here; control tokens in a prompt itself are plain text.",
    )
    drop_prefix: bool = Field(
        True, description="Whether the features begin with the prompt; otherwise with the text before it."
    )
    max_tokens: int = Field(512, gt=0, le=32768, description="Template and prompt together; the prompt is cut to fit.")

    _layers_differ = field_validator("layers")(check_layers)

    @field_validator("template")
    @classmethod
    def _has_one_place(cls, template: str) -> str:
        if template.count("{prompt}") != 1:
            raise ValueError(f"{template!r} must contain {{prompt}} once")
        return template
