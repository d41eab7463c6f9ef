"""Configs of the fake plugin."""

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig
from lens_core.config.stage import StageConfig


class NumbersConfig(StageConfig):
    type: Literal["numbers"] = "numbers"
    count: int = Field(3, gt=0, description="How many numbers.")
    pause_s: float = Field(0, ge=0, description="Pause after each number.")
    fail_at: int = Field(-1, description="Raise at this number.")


class TotalConfig(StageConfig):
    type: Literal["total"] = "total"
    source: str | list[str] = Field(description="Stages that make numbers.")


class PlainConfig(ComponentConfig):
    type: Literal["needs-extra"] = "needs-extra"


class LostConfig(ComponentConfig):
    type: Literal["lost"] = "lost"
