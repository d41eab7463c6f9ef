"""Settings of the serve stage: those of a server, whose models are the pipeline's own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.components import SafetyCheckerField
from lens_core.config.stage import StageConfig
from lens_serve.config import (
    AdmissionSettings,
    Bounds,
    EngineSettings,
    ListenSettings,
    OutputSettings,
    RewriteSettings,
    WatchSettings,
)

__all__ = ["ServeStageConfig"]


class ServeStageConfig(StageConfig):
    """Serve models behind the OpenAI Images API, with a page to try them."""

    type: Literal["serve"] = "serve"
    source: str | list[str] = Field(
        description="The stages whose models are served, by these names; the first by default."
    )
    minutes: float | None = Field(None, gt=0, description="Then the stage is done; null: until the run is stopped.")
    listen: ListenSettings = Field(ListenSettings(), description="Where, and to whom.")
    bounds: Bounds = Field(Bounds(), description="What may be asked for.")
    engine: EngineSettings = Field(EngineSettings(), description="The process that computes.")
    admission: AdmissionSettings = Field(AdmissionSettings(), description="How much may wait, and for whom.")
    rewrite: RewriteSettings = Field(RewriteSettings(), description="Whether prompts are rewritten.")
    safety: list[SafetyCheckerField] = Field([], description="What may refuse a prompt or an image.")
    output: OutputSettings = Field(OutputSettings(), description="What an image carries, and where it goes.")
    watch: WatchSettings = Field(WatchSettings(), description="What is told about the server.")
