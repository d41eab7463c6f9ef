"""Settings of the aesthetics filter."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.filters.vision.config import LabelFilterConfig, Output

__all__ = ["AestheticsConfig"]


class AestheticsConfig(LabelFilterConfig):
    """Drops images that a model finds ugly; you bring the model."""

    type: Literal["aesthetics"] = "aesthetics"
    label: str | None = Field(None, description="The output that is the score; a model with one output needs no name.")
    output: Output = Field(
        "value", description="How the output becomes a score: as it is (value), or by softmax or sigmoid."
    )
    min: float = Field(3.0, description="Smallest score that is kept (the paper's is 3, of Aesthetic Predictor v2.5).")
