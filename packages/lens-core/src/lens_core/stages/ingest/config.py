"""Settings of the ingest stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.components import DatasetField, FilterField
from lens_core.config.stage import StageConfig

__all__ = ["IngestStageConfig"]


class IngestStageConfig(StageConfig):
    """Read a source of images, filter it, and store it as shards."""

    type: Literal["ingest"] = "ingest"
    source: DatasetField = Field(description="Where the images come from.")
    filters: list[FilterField] = Field(
        ["decodable"], validate_default=True, description="What drops images, in this order; cheap ones first."
    )
    score_all: bool = Field(
        False,
        description="Whether an image that one filter drops is still measured by those behind it: slower, but the "
        "ledger then has every score, and no bound that is changed later costs anything.",
    )
