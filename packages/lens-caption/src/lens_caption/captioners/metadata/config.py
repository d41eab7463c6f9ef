"""Settings of the metadata captioner."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig

__all__ = ["MetadataConfig"]


class MetadataConfig(ComponentConfig):
    """Takes the captions that a data set brings, from a field of each image's metadata."""

    type: Literal["metadata"] = "metadata"
    field: str = Field(
        "txt",
        min_length=1,
        description="The field with the caption, a text or a list whose first is taken; dots lead into nested fields.",
    )
