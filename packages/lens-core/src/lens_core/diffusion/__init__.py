"""The torch rooms: models, autoencoders, text encoders, samplers, and what joins them.

Public names are loaded on first use (PEP 562), because config modules live below this package and must stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lens_core.diffusion.counter_noise import noise, uniform
    from lens_core.diffusion.loaded_model import LoadedModel
    from lens_core.diffusion.model_folder import load_model_folder, save_model_folder
    from lens_core.diffusion.models.lens.model import LensTransformer2DModel
    from lens_core.diffusion.pipeline import LensPipeline
    from lens_core.diffusion.ragged import RaggedBatch
    from lens_core.diffusion.requests import Request, Start
    from lens_core.diffusion.text_to_image import generate

__all__ = [
    "LensPipeline",
    "LensTransformer2DModel",
    "LoadedModel",
    "RaggedBatch",
    "Request",
    "Start",
    "generate",
    "load_model_folder",
    "noise",
    "save_model_folder",
    "uniform",
]

_HOMES = {
    "LensPipeline": "pipeline",
    "LensTransformer2DModel": "models.lens.model",
    "LoadedModel": "loaded_model",
    "RaggedBatch": "ragged",
    "Request": "requests",
    "Start": "requests",
    "generate": "text_to_image",
    "load_model_folder": "model_folder",
    "noise": "counter_noise",
    "save_model_folder": "model_folder",
    "uniform": "counter_noise",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
