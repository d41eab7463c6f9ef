"""Settings of what is measured while a model trains."""

from __future__ import annotations

from pydantic import Field

from lens_core.config.base import Config

__all__ = ["ValidationConfig", "WatchConfig"]


class ValidationConfig(Config):
    """The loss of images that are never trained on, with averaged weights."""

    share: float = Field(
        0.01, gt=0, le=0.5, description="Share of the images that are held out, chosen by a lot on their content."
    )
    max_samples: int = Field(256, gt=0, description="No more than these are held out.")
    every: int = Field(1000, gt=0, description="Steps between validations; the end of the run is one as well.")
    times: int = Field(8, gt=0, le=64, description="Noise levels, evenly spaced, that each image is judged at.")
    limit: float | None = Field(None, gt=0, description="A larger loss at the end of the run fails it.")


class WatchConfig(Config):
    """What is written down on the way; a line of JSON always is."""

    log_every: int = Field(10, gt=0, description="Steps between lines of metrics.")
    tensorboard: bool = Field(True, description="Whether curves go to TensorBoard's files as well.")
    validation: ValidationConfig | None = Field(None, description="Images held out, and how often they are looked at.")
