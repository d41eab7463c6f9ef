"""Settings of the stage that checks captions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_caption.quality.config import GatesConfig, JudgeConfig
from lens_core.config.stage import StageConfig

__all__ = ["CheckCaptionsConfig"]


class CheckCaptionsConfig(StageConfig):
    """Put captions through gates, and have a sample judged; what fails is rejected in a layer of its own."""

    type: Literal["check-captions"] = "check-captions"
    source: str = Field(description="The stage whose captions are checked; they stay as they are.")
    layers: tuple[str, ...] | None = Field(
        None, min_length=1, description="Only these layers are checked, others pass through; null means all."
    )
    languages: dict[str, tuple[str, ...]] = Field(
        {}, description="Languages of single layers, by name, where they are not those of the language gate."
    )
    gates: GatesConfig = Field(GatesConfig(), description="The gates and their thresholds.")
    judge: JudgeConfig | None = Field(None, description="A vision model that judges a sample; null means none.")
    max_rejected: float = Field(
        0.5, ge=0, le=1, description="The stage fails when a larger share of the captions is rejected."
    )
