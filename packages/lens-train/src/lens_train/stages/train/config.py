"""Settings of the train stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lens_core.config.components import AutoencoderField, ModelField, SamplerField, TextEncoderField
from lens_core.config.stage import StageConfig
from lens_train.loop.budget import Budget
from lens_train.objective.config import ObjectiveConfig
from lens_train.optim.config import OptimizerConfig

__all__ = ["TrainStageConfig"]

Side = Annotated[int, Field(gt=0, le=4096)]


class TrainStageConfig(StageConfig):
    """Train a text-to-image model on captioned images."""

    type: Literal["train"] = "train"
    source: str = Field(description="The stage whose captions (and their images) are trained on.")
    budget: Budget = Field(description="How long: exactly one of flops, steps, minutes.")
    model: ModelField = Field("lens", validate_default=True, description="The denoiser.")
    autoencoder: AutoencoderField = Field("pixels", validate_default=True, description="Between pixels and tokens.")
    text_encoder: TextEncoderField = Field("small", validate_default=True, description="Prompts to features.")
    sampler: SamplerField = Field(
        "flow-euler", validate_default=True, description="The sampler that the finished model recommends."
    )
    guidance: float = Field(3.0, ge=0, le=100, description="The guidance scale that the finished model recommends.")
    guidance_rescale: bool = Field(False, description="Whether guidance keeps each token's length.")
    image_size: Side | tuple[Side, Side] | None = Field(
        None, description="Side, or [height, width], that images are scaled and cropped to; null keeps their own."
    )
    layers: list[str] | None = Field(None, description="Caption layers to train on; null means all.")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="What is learned, and at which noise levels.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="How parameters are moved.")
    ema: float = Field(0.99, ge=0, lt=1, description="Decay of the averaged weights, which the finished model has.")
    batch_size: int = Field(64, gt=0, le=65536, description="Images a step.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 computes in bfloat16 where that is safe; only worth it where the hardware has it."
    )
    threads: int | None = Field(None, gt=0, description="CPU threads; null takes what torch takes.")
    save_every_s: float = Field(60, gt=0, description="Seconds between saves of the training state.")
    log_every: int = Field(10, gt=0, description="Steps between lines of metrics.")
    licence: str = Field("", description="What the weights may be used for; written into lens.json.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where to train.")
