"""Settings that the filters which run a model share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig
from lens_core.datasets import files
from lens_core.filters.vision.models import found, model_files

__all__ = ["LabelFilterConfig", "Output", "VisionConfig"]

Output = Literal["auto", "softmax", "sigmoid", "value"]


class VisionConfig(ComponentConfig):
    """A vision model on this machine."""

    model: str = Field(
        min_length=1,
        description="Folder of a Hugging Face model (config.json, preprocessor_config.json, *.safetensors).",
    )
    device: str = Field("auto", description="Where it runs: auto, cpu, cuda, cuda:1, …")

    def fingerprint(self) -> str:
        """Hash of the paths, sizes and times of the model's files; see `lens_core.contracts.Filter`.

        Raises:
            ConfigError: there is no model.
        """
        return files.fingerprint(map(str, sorted(model_files(found(self.model, asked_by=self.type)))))


class LabelFilterConfig(VisionConfig):
    """A classifier, and the labels for which an image is dropped."""

    model: str = Field(
        min_length=1,
        description="Folder of a Hugging Face image classifier (config.json, preprocessor_config.json, *.safetensors), "
        "or an ONNX file with the two JSON files beside it.",
    )
    output: Output = Field(
        "auto",
        description="How its outputs become scores: softmax or sigmoid; auto goes by the model's config.json.",
    )
