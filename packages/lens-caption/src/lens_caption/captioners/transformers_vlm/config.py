"""Settings of the captioner that runs a model of Hugging Face transformers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig
from lens_core.config.devices import DeviceName

__all__ = ["TransformersVlmConfig"]


class TransformersVlmConfig(ComponentConfig):
    """A Hugging Face image-text-to-text model on this machine; as many images at once as the stage's batch_size."""

    type: Literal["transformers-vlm"] = "transformers-vlm"
    model: str = Field(
        min_length=1,
        description="Folder of the model: config.json, *.safetensors, its processor and its chat template.",
    )
    prompt: str = Field("dense-1", min_length=1, description="The recipe: what is asked about each image.")
    recipes: str | None = Field(None, min_length=1, description="Folder of your own recipes, looked at first.")
    instruction: str | None = Field(None, min_length=1, description="Words of your own, instead of a recipe.")
    max_side: int = Field(768, ge=32, le=4096, description="Images are scaled down to this before the model's own way.")
    max_new_tokens: int = Field(700, gt=0, le=32768, description="Longer answers count as truncated.")
    temperature: float = Field(0, ge=0, le=2, description="0 takes the likeliest word each time.")
    seed: int = Field(0, ge=0, description="Of the words that are drawn, where temperature is not 0.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="What it computes in; auto takes what the weights are stored in."
    )
    device: DeviceName = Field("auto", description="Where it runs.")
