"""Settings of the encode stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.components import AutoencoderField
from lens_core.config.devices import DeviceName
from lens_core.config.stage import StageConfig
from lens_train.data.config import ImageSizeField

__all__ = ["EncodeStageConfig"]


class EncodeStageConfig(StageConfig):
    """Run images through the autoencoder once, so that training need not."""

    type: Literal["encode"] = "encode"
    source: str = Field(description="The stage whose images are encoded.")
    autoencoder: AutoencoderField = Field("pixels", validate_default=True, description="Between pixels and tokens.")
    image_size: ImageSizeField = None
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="What tokens are stored in.")
    batch_size: int = Field(16, gt=0, description="Images of one size that are encoded together.")
    shard_mb: float = Field(
        256,
        gt=0,
        description="How large a file of tokens grows; a stage that was killed goes on after the last full one.",
    )
    device: DeviceName = Field("auto", description="Where to encode.")
