"""Settings of the train stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lens_core.config.base import Config
from lens_core.config.components import AutoencoderField, ModelField, SamplerField, TextEncoderField
from lens_core.config.devices import DeviceName
from lens_core.config.stage import StageConfig
from lens_train.data.config import DataConfig, ImageSizeField
from lens_train.loop.budget import Budget
from lens_train.methods.config import FullMethod, MethodConfig
from lens_train.objective.config import ObjectiveConfig
from lens_train.optim.config import OptimizerConfig
from lens_train.parallel.config import ParallelConfig
from lens_train.planning.config import BatchConfig
from lens_train.watch.config import WatchConfig

__all__ = ["CheckpointConfig", "TrainStageConfig"]

_FREE: Any = {
    "device": True,
    "threads": True,
    "checkpoints": True,
    "data": True,
    "optimizer": {"max_skipped"},
    "parallel": {"replicate", "shard", "timeout_s", "activation_checkpointing", "activation_budget"},
    "watch": {
        **dict.fromkeys(("log_every", "tensorboard", "wandb", "trackio", "profile"), True),
        "validation": {"limit"},
        "evaluate": {"at_least"},
    },
}
"""What a run may change on its way and go on: where and how fast it trains, what it logs, when it gives up, when its
end is refused."""


class CheckpointConfig(Config):
    """When the training state is saved, and which saves are kept."""

    every_s: float = Field(60, gt=0, description="Seconds between saves.")
    keep_last: int = Field(1, gt=0, description="How many of the latest saves are kept.")
    keep_every: int | None = Field(
        None, gt=0, description="Saves at multiples of this many steps are kept as well, also when the stage is done."
    )


class TrainStageConfig(StageConfig):
    """Train a text-to-image model on captioned images."""

    type: Literal["train"] = "train"
    source: str | list[str] = Field(
        description="The stage whose captions (and their images) are trained on; or [captions, model] to go on from a "
        "model that an earlier stage made, or [captions, latents] for images that the stage `encode` has encoded."
    )
    start: str | None = Field(
        None, description="A model folder or URL to go on from; its parts replace `model` and its companions."
    )
    budget: Budget = Field(description="How long: exactly one of flops, steps, samples, tokens, minutes.")
    method: MethodConfig = Field(FullMethod(), description="What is moved: every weight, or an adapter beside them.")
    model: ModelField = Field("lens", validate_default=True, description="The denoiser.")
    autoencoder: AutoencoderField = Field("pixels", validate_default=True, description="Between pixels and tokens.")
    text_encoder: TextEncoderField = Field("small", validate_default=True, description="Prompts to features.")
    sampler: SamplerField | None = Field(
        None,
        description="The sampler that the finished model recommends; null: flow-euler, or what `start` recommends.",
    )
    guidance: float | None = Field(
        None, ge=0, le=100, description="The guidance scale that it recommends; null: 3, or what `start` recommends."
    )
    guidance_rescale: bool | None = Field(
        None, description="Whether guidance keeps each token's length; null: likewise."
    )
    image_size: ImageSizeField = None
    layers: list[str] | None = Field(None, description="Caption layers to train on; null means all.")
    batch: BatchConfig = Field(BatchConfig(samples=64), description="What a step is made of.")
    data: DataConfig = Field(DataConfig(), description="How images and captions reach the loop.")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="What is learned, and at which noise levels.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="How parameters are moved.")
    ema: float = Field(0.99, ge=0, lt=1, description="Decay of the averaged weights, which the finished model has.")
    parallel: ParallelConfig = Field(ParallelConfig(), description="How the work is spread and memory is saved.")
    checkpoints: CheckpointConfig = Field(CheckpointConfig(), description="The training state on disk.")
    watch: WatchConfig = Field(WatchConfig(), description="What is measured on the way.")
    threads: int | None = Field(None, gt=0, description="CPU threads; null takes what torch takes.")
    licence: str = Field("", description="What the weights may be used for; written into lens.json.")
    device: DeviceName = Field("auto", description="Where to train.")

    def keyed(self) -> dict[str, Any]:
        """The settings that the model depends on, beyond rounding; with others, training begins anew."""
        return self.model_dump(mode="json", exclude=_FREE)
