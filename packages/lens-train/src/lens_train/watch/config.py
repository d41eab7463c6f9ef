"""Settings of what is measured while a model trains."""

from __future__ import annotations

from pydantic import Field

from lens_core.config.base import Config

__all__ = ["WatchConfig"]


class WatchConfig(Config):
    """What is written down on the way; a line of JSON always is."""

    log_every: int = Field(10, gt=0, description="Steps between lines of metrics.")
    tensorboard: bool = Field(True, description="Whether curves go to TensorBoard's files as well.")
