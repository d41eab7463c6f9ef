"""Settings of the GenEval evaluator."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lens_core.config.base import ComponentConfig
from lens_core.config.devices import DeviceName

__all__ = ["GenevalEvaluatorConfig"]


class GenevalEvaluatorConfig(ComponentConfig):
    """GenEval's prompts and rules (arXiv 2310.11513), with models from folders on this machine."""

    type: Literal["geneval"] = "geneval"
    prompts: str = Field(min_length=1, description="GenEval's evaluation_metadata.jsonl, or a file like it.")
    detector: str = Field(
        min_length=1,
        description="Folder of a Hugging Face object detector that knows the classes of COCO, such as RT-DETR or DETR.",
    )
    clip: str | None = Field(
        None, min_length=1, description="Folder of a Hugging Face CLIP, for colours; null if no prompt asks for any."
    )
    samples: int = Field(4, gt=0, le=64, description="Pictures of each prompt.")
    prompts_per_skill: int | None = Field(None, gt=0, description="Only the first of each skill; null takes all.")
    size: int | None = Field(
        None, gt=0, le=4096, description="Height and width of the pictures in pixels; null takes the model's."
    )
    threshold: float = Field(0.3, ge=0, lt=1, description="A detection counts if the detector is surer than this.")
    counting_threshold: float = Field(0.9, ge=0, lt=1, description="The same, where objects are counted.")
    device: DeviceName = Field("auto", description="Where detector and CLIP run.")
