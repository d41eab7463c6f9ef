"""Settings of the distance stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.components import SamplerField
from lens_core.config.devices import DeviceName, DtypeName
from lens_core.config.stage import StageConfig

__all__ = ["DistanceStageConfig"]


class DistanceStageConfig(StageConfig):
    """Measure how far models' pictures of captions are from the images that the captions describe."""

    type: Literal["distance"] = "distance"
    source: list[str] = Field(
        min_length=2, description="The stages whose models are measured, and one whose captions they draw."
    )
    layer: str | None = Field(None, description="Which captions, if there are several of an image; null: the first.")
    features: str = Field(
        "pixels",
        min_length=1,
        description="What pictures are compared by: pixels, scaled to 8x8, or the folder of a vision model of Hugging "
        "Face, such as CLIP or DINOv2.",
    )
    images: int = Field(1000, ge=8, le=10_000, description="How many, chosen by a lot on their content.")
    steps: int | None = Field(None, gt=0, le=1000, description="Sampler steps; null takes the model's.")
    sampler: SamplerField | None = Field(None, description="null takes the model's.")
    guidance: float | None = Field(None, ge=0, le=100, description="null takes the model's.")
    seed: int = Field(0, ge=0, description="Of the noise; the same for all models.")
    dtype: DtypeName | None = Field(
        None, description="What to compute in; null: float32 for the denoiser, the rest as stored."
    )
    device: DeviceName = Field("auto", description="Where to draw.")
