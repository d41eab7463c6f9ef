"""Settings of the rewriter that runs a language model on this machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig
from lens_core.config.devices import DeviceName

__all__ = ["TransformersLmConfig"]


class TransformersLmConfig(ComponentConfig):
    """A Hugging Face causal language model on this machine, such as Qwen3; one prompt at a time."""

    type: Literal["transformers-lm"] = "transformers-lm"
    model: str = Field(
        min_length=1,
        description="Folder of the model: config.json, *.safetensors, its tokenizer and its chat template.",
    )
    template: str = Field("dense-1", min_length=1, description="What the model is told: a built-in name, or a file.")
    max_new_tokens: int = Field(512, gt=0, le=8192, description="A longer answer counts for nothing.")
    temperature: float = Field(0, ge=0, le=2, description="0 takes the likeliest word each time.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="What it computes in; auto takes what the weights are stored in."
    )
    device: DeviceName = Field("auto", description="Where it runs.")
