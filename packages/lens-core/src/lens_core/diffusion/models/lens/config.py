"""Settings of the Lens denoiser: a preset by name, and any field of a released `transformer/config.json` over it."""

from __future__ import annotations

from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from lens_core.config.base import ComponentConfig

__all__ = ["PRESETS", "LensModelConfig", "load_preset"]

PRESETS = ("nano", "100m", "toy-1.2b", "3.8b")


def load_preset(name: str) -> dict[str, Any]:
    """Architecture fields of a preset; each lies in a YAML file of its own beside this module."""
    text = (resources.files(__package__) / "presets" / f"{name}.yaml").read_text()
    return dict(yaml.safe_load(text))


class LensModelConfig(ComponentConfig):
    """The Lens denoiser. A field left out takes the preset's value."""

    type: Literal["lens"] = "lens"
    preset: Literal["nano", "100m", "toy-1.2b", "3.8b"] = Field("nano", description="A size that is known to work.")
    num_layers: int | None = Field(None, gt=0, description="Dual-stream blocks.")
    num_attention_heads: int | None = Field(None, gt=0, description="Attention heads.")
    attention_head_dim: int | None = Field(None, gt=0, description="Channels per head.")
    axes_dims_rope: tuple[int, int, int] | None = Field(
        None, description="Channels of a head that encode frame, height and width; they add up to attention_head_dim."
    )
    selected_layer_index: tuple[int, ...] | None = Field(
        None,
        description="Which of the text encoder's layers the features come from, for those who read it; null counts.",
    )

    @model_validator(mode="after")
    def _axes_fit(self) -> LensModelConfig:
        fields = self.architecture()
        if sum(fields["axes_dims_rope"]) != fields["attention_head_dim"]:
            raise ValueError(f"axes_dims_rope {fields['axes_dims_rope']} must add up to {fields['attention_head_dim']}")
        if any(size % 2 for size in fields["axes_dims_rope"]):
            raise ValueError("axes_dims_rope must be even")
        return self

    def architecture(self) -> dict[str, Any]:
        """The preset with this config's own values over it."""
        own = self.model_dump(exclude={"type", "preset", "selected_layer_index"}, exclude_none=True)
        return {**load_preset(self.preset), **own}
