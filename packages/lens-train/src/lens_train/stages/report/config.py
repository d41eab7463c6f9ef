"""Settings of the report stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.stage import StageConfig

__all__ = ["ReportStageConfig"]


class ReportStageConfig(StageConfig):
    """Write one page about a run: pictures, curves, tables, lineage."""

    type: Literal["report"] = "report"
    source: str | list[str] = Field(
        description="What to report on: models, and samples and scores where there are some."
    )
    title: str = Field("Lens report", min_length=1, max_length=120, description="Heading of the page.")
    captions_shown: int = Field(6, ge=0, le=64, description="Training images shown with their captions.")
