"""Settings of what is measured while a model trains."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lens_core.config.base import Config
from lens_core.config.components import EvaluatorField

__all__ = ["EvaluationConfig", "ProfileConfig", "SamplesConfig", "ValidationConfig", "WatchConfig"]


class ValidationConfig(Config):
    """The loss of images that are never trained on, with averaged weights."""

    share: float = Field(
        0.01, gt=0, le=0.5, description="Share of the images that are held out, chosen by a lot on their content."
    )
    max_samples: int = Field(256, gt=0, description="No more than these are held out.")
    every: int = Field(1000, gt=0, description="Steps between validations; the end of the run is one as well.")
    times: int = Field(8, gt=0, le=64, description="Noise levels, evenly spaced, that each image is judged at.")
    limit: float | None = Field(None, gt=0, description="A larger loss at the end of the run fails it.")


class SamplesConfig(Config):
    """Pictures of the same prompts from the same noise, with averaged weights, as a grid."""

    prompts: list[str] = Field(min_length=1, max_length=64, description="What is drawn.")
    every: int = Field(1000, gt=0, description="Steps between grids; the end of the run has one as well.")


class EvaluationConfig(Config):
    """Scores of the averaged weights while they are trained."""

    evaluator: EvaluatorField = Field(description="Who asks and judges.")
    every: int = Field(1000, gt=0, description="Steps between evaluations; the end of the run is one as well.")
    at_least: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="The share that must be right at the end, by skill; the run fails with less."
    )


class ProfileConfig(Config):
    """A trace of some steps; the signal SIGUSR1 asks a running process for one as well."""

    at: int = Field(gt=0, description="The first step of the trace.")
    steps: int = Field(3, gt=0, le=100, description="How many it covers.")


class WatchConfig(Config):
    """What is written down on the way; a line of JSON always is."""

    log_every: int = Field(10, gt=0, description="Steps between lines of metrics.")
    tensorboard: bool = Field(True, description="Whether curves go to TensorBoard's files as well.")
    validation: ValidationConfig | None = Field(None, description="Images held out, and how often they are looked at.")
    samples: SamplesConfig | None = Field(None, description="Prompts that are drawn now and then.")
    evaluate: EvaluationConfig | None = Field(None, description="An evaluator that judges now and then.")
    wandb: str | None = Field(
        None, min_length=1, description="A project of W&B that curves go to as well; needs lens-train[wandb]."
    )
    trackio: str | None = Field(
        None, min_length=1, description="A project of trackio that curves go to as well; needs lens-train[trackio]."
    )
    profile: ProfileConfig | None = Field(None, description="Steps that are traced.")
