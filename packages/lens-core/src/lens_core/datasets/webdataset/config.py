"""Settings of the WebDataset source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig, Url

__all__ = ["WebDatasetConfig"]


class WebDatasetConfig(ComponentConfig):
    """Images in tar files: neighbouring files whose names agree up to the first dot are one sample."""

    type: Literal["webdataset"] = "webdataset"
    url: Url = Field(
        min_length=1,
        description="A tar file, or a folder or fsspec URL of them; a relative path starts at the pipeline file.",
    )
    images: list[str] = Field(
        ["jpg", "jpeg", "png", "webp", "avif", "heic", "gif", "bmp", "tif", "tiff"],
        min_length=1,
        description="Endings of images, without the dot; of several in one sample, the first of this list is taken.",
    )
    metadata: list[str] = Field(
        ["json", "txt"],
        description="Endings of what is kept with the image: the fields of a .json file, others as text under their "
        "ending.",
    )
    licence: str = Field("", description="Licence of these images, kept with each.")
