"""Settings of the block list."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lens_core.config.base import ComponentConfig

__all__ = ["BlockListConfig"]


class BlockListConfig(ComponentConfig):
    """Refuses prompts that have certain words or phrases in them, whatever their case and spacing."""

    type: Literal["block-list"] = "block-list"
    words: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        [], max_length=100_000, description="Words and phrases, here."
    )
    file: str | None = Field(
        None, min_length=1, description="Words and phrases, one a line, in a UTF-8 file; `#` begins a remark."
    )

    @model_validator(mode="after")
    def _names_something(self) -> BlockListConfig:
        if not self.words and self.file is None:
            raise ValueError("a block list needs words, or a file of them")
        return self
