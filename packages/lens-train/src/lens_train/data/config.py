"""Settings of the data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lens_core.config.base import Config
from lens_train.planning.config import SizesConfig

__all__ = ["DataConfig", "ImageSize", "ImageSizeField"]

_Side = Annotated[int, Field(gt=0, le=4096)]
ImageSize = _Side | tuple[_Side, _Side] | SizesConfig
ImageSizeField = Annotated[
    ImageSize | None,
    Field(
        description="What images are scaled and cropped to: a side, [height, width], or {bases: {512: 1, 1024: 1}} for "
        "nine ratios of each base; null keeps their own."
    ),
]


class DataConfig(Config):
    """How images and captions reach the loop."""

    workers: int = Field(
        0, ge=0, le=256, description="Processes of each rank that read and decode what is not in memory; 0: none."
    )
    memory_gb: float = Field(
        4.0,
        ge=0,
        description="Decoded images are kept in memory if all of them fit; else they are read again and again.",
    )
    text_cache_gb: float = Field(
        0.0, ge=0, description="Memory for the features of a text encoder that is not trained."
    )
    max_bad_samples: int = Field(
        100, ge=0, description="How many samples, each counted once, are passed over as unreadable before the run ends."
    )
