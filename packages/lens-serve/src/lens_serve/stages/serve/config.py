"""Settings of the serve stage: those of a server, whose models are the pipeline's own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.stage import StageConfig
from lens_serve.config import ServerBlocks

__all__ = ["ServeStageConfig"]


class ServeStageConfig(ServerBlocks, StageConfig):
    """Serve models behind the OpenAI Images API, with a page to try them."""

    type: Literal["serve"] = "serve"
    source: str | list[str] = Field(
        description="The stages whose models are served, by these names; the first by default."
    )
    minutes: float | None = Field(None, gt=0, description="Then the stage is done; null: until the run is stopped.")
