"""Settings of the Hugging Face source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig, Url

__all__ = ["HuggingFaceConfig"]


class HuggingFaceConfig(ComponentConfig):
    """A dataset on disk, as `datasets.Dataset.save_to_disk` leaves it; the library itself is not needed."""

    type: Literal["huggingface"] = "huggingface"
    url: Url = Field(
        min_length=1, description="Folder or fsspec URL of the dataset; a relative path starts at the pipeline file."
    )
    split: str | None = Field(None, description="Which split, if the dataset has several.")
    image: str | None = Field(None, description="The column of images; by default the only one of type Image.")
    licence: str = Field("", description="Licence of these images, kept with each.")
