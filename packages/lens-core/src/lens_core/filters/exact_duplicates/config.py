"""Settings of the filter of exact duplicates."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["ExactDuplicatesConfig"]


class ExactDuplicatesConfig(ComponentConfig):
    """Drops images that repeat an earlier one exactly; put it early to save the work on repetitions."""

    type: Literal["exact-duplicates"] = "exact-duplicates"
    of: Literal["pixels", "bytes"] = Field(
        "pixels", description="What is compared: the decoded pixels, or the file's bytes without decoding."
    )
