"""Settings of the evaluate stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.components import EvaluatorField, RewriterField, SamplerField
from lens_core.config.devices import DeviceName, DtypeName
from lens_core.config.stage import StageConfig

__all__ = ["EvaluateStageConfig"]


class EvaluateStageConfig(StageConfig):
    """Measure how well models follow prompts, skill by skill."""

    type: Literal["evaluate"] = "evaluate"
    source: str | list[str] = Field(description="The stages whose models are measured.")
    evaluator: EvaluatorField = Field(description="Who asks and judges.")
    rewriter: RewriterField | None = Field(
        None, description="Rewrites what models are given; judged is what was asked."
    )
    steps: int | None = Field(None, gt=0, le=1000, description="Sampler steps; null takes the model's.")
    sampler: SamplerField | None = Field(None, description="null takes the model's.")
    guidance: float | None = Field(None, ge=0, le=100, description="null takes the model's.")
    seed: int = Field(0, ge=0, description="Of the noise; the same for all models.")
    dtype: DtypeName | None = Field(
        None, description="What to compute in; null: float32 for the denoiser, the rest as stored."
    )
    device: DeviceName = Field("auto", description="Where to draw.")
