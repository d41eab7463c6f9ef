"""Settings of the caption-report stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.stage import StageConfig

__all__ = ["CaptionReportStageConfig"]


class CaptionReportStageConfig(StageConfig):
    """Write one page about captions: lengths, failures, cost, repetition, and a gallery."""

    type: Literal["caption-report"] = "caption-report"
    source: str | list[str] = Field(description="The caption stages to report on.")
    title: str = Field("Captions", min_length=1, max_length=120, description="Heading of the page.")
    samples: int = Field(12, ge=0, le=100, description="Images shown of each kind: random, worst, shortest, longest.")
    thumbnail: int = Field(192, ge=32, le=1024, description="Longer side of the pictures on the page, in pixels.")
