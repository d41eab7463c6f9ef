"""Settings of the image folder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig, Url

__all__ = ["ImageFolderConfig"]


class ImageFolderConfig(ComponentConfig):
    """The images below a folder or bucket, at any depth, by their file names' endings."""

    type: Literal["image-folder"] = "image-folder"
    url: Url = Field(
        min_length=1,
        description="Folder or fsspec URL; a relative path starts at the pipeline file. What a .txt of an image's name "
        "and its line in a metadata.jsonl say becomes its metadata.",
    )
    endings: list[str] = Field(
        ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "avif", "heic", "heif"],
        min_length=1,
        description="Endings of file names that are images, without the dot.",
    )
    licence: str = Field("", description="Licence of these images, kept with each.")
