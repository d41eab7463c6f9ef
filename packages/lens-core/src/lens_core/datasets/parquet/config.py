"""Settings of the Parquet source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig, Url

__all__ = ["ParquetConfig"]


class ParquetConfig(ComponentConfig):
    """Images in a column of Parquet files, a row each."""

    type: Literal["parquet"] = "parquet"
    url: Url = Field(
        min_length=1,
        description="A Parquet file, or a folder or fsspec URL of them; a relative path starts at the pipeline file.",
    )
    image: str = Field(
        "image",
        description="The column of images: bytes, paths below the file's folder, URLs of web servers and object "
        "stores, or Hugging Face's pairs of bytes and path.",
    )
    name: str | None = Field(None, description="The column of names, if they are unique; else file and row number.")
    licence_column: str | None = Field(None, description="The column of licences.")
    source_url_column: str | None = Field(None, description="The column of the images' addresses.")
    metadata: list[str] = Field([], description="Columns that are kept with the image.")
    licence: str = Field("", description="Licence of these images, kept with each that has none of its own.")
