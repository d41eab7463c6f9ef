"""Settings of the sample stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.components import RewriterField, SamplerField
from lens_core.config.devices import DeviceName
from lens_core.config.stage import StageConfig

__all__ = ["SampleStageConfig"]


class SampleStageConfig(StageConfig):
    """Draw a gallery of prompts with trained models."""

    type: Literal["sample"] = "sample"
    source: str | list[str] = Field(description="The stages whose models draw.")
    prompts: list[str] = Field(min_length=1, description="What to draw.")
    per_prompt: int = Field(1, gt=0, le=64, description="Pictures of each prompt.")
    rewriter: RewriterField | None = Field(None, description="Expands the prompts first.")
    height: int | None = Field(None, gt=0, le=4096, description="In pixels; null takes what the model was trained on.")
    width: int | None = Field(None, gt=0, le=4096, description="In pixels; null takes what the model was trained on.")
    steps: int | None = Field(None, gt=0, le=1000, description="Sampler steps; null takes the model's.")
    sampler: SamplerField | None = Field(None, description="null takes the model's.")
    guidance: float | None = Field(None, ge=0, le=100, description="null takes the model's.")
    seed: int = Field(0, ge=0, description="Of the noise.")
    device: DeviceName = Field("auto", description="Where to draw.")
