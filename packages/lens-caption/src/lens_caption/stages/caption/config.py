"""Settings of the caption stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lens_caption.engine.settings import EngineSettings
from lens_caption.quality.config import WatchSettings
from lens_caption.scale.config import Executor, ProcessExecutor
from lens_core.config.components import CaptionerField
from lens_core.config.stage import StageConfig

__all__ = ["CaptionStageConfig"]


class CaptionStageConfig(StageConfig):
    """Caption every image of a set, as a layer beside the pixels."""

    type: Literal["caption"] = "caption"
    source: str = Field(description="The stage whose images are captioned.")
    captioner: CaptionerField = Field(description="Who writes the captions.")
    layer: str | None = Field(None, min_length=1, description="Name of the caption layer; null takes the stage's name.")
    batch_size: int = Field(32, gt=0, le=4096, description="Images handed to a captioner that asks no server.")
    # No caption depends on it. It is kept out of the stage's key, so that a run goes on when it changes.
    engine: EngineSettings = Field(EngineSettings(), exclude=True, description="How captions are bought.")
    watch: WatchSettings | None = Field(
        None, exclude=True, description="Watch for captions of other images while they come in; null: no watch."
    )
    executor: Executor = Field(ProcessExecutor(), exclude=True, description="Who does the work.")

    @model_validator(mode="after")
    def _batches_fan_out_themselves(self) -> CaptionStageConfig:
        if self.executor.type != "process" and self.engine.lane not in {"sync", "flex"}:
            raise ValueError(f"the lane {self.engine.lane} needs no executor: one process keeps the service busy")
        return self

    @model_validator(mode="after")
    def _watched_by_one(self) -> CaptionStageConfig:
        if self.executor.type != "process" and self.watch:
            raise ValueError("'watch' needs the executor process: one process sees all answers as they come")
        return self

    @property
    def lease_s(self) -> float | None:
        """Seconds after which a silent machine counts as dead; None unless machines share the work."""
        return self.executor.lease_s if self.executor.type == "leases" else None
