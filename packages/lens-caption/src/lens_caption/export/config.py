"""Settings of the export stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lens_core.config.stage import StageConfig

__all__ = ["ExportStageConfig"]


class ExportStageConfig(StageConfig):
    """Write images and their captions for other tools: WebDataset, Parquet, Hugging Face, Lance."""

    type: Literal["export"] = "export"
    source: str | list[str] = Field(description="The caption stages; their images come with them.")
    format: Literal["webdataset", "parquet", "imagefolder", "datasets", "lance"] = Field(
        description="imagefolder and datasets are Hugging Face's: files with a metadata table, and Arrow on disk."
    )
    layers: list[str] | None = Field(
        None,
        min_length=1,
        description="The layers that are written. The first that has a caption gives the image's text, unless a "
        "reviewer rejected it; null takes all, in the order of the sources.",
    )
    without_caption: Literal["skip", "keep"] = Field(
        "skip", description="What becomes of images that have no caption: left out, or written with none."
    )
    shard_megabytes: int = Field(256, gt=0, le=1024, description="A new file begins after that many MiB.")
    metadata: Literal["jsonl", "parquet"] | None = Field(
        None, description="Of imagefolder only: which metadata file is written; null is jsonl."
    )

    @model_validator(mode="after")
    def _options_fit(self) -> ExportStageConfig:
        if self.metadata and self.format != "imagefolder":
            raise ValueError(f"'metadata' is an option of the format imagefolder, not of {self.format}")
        if self.layers and len(set(self.layers)) < len(self.layers):
            raise ValueError("'layers' names a layer twice")
        return self
