"""What training goes on from: a released checkpoint, or a model that an earlier stage made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lens_core.diffusion.model_folder import load_model_folder
from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from lens_core.config.prediction import PredictionConfig
    from lens_core.diffusion.loaded_model import LoadedModel
    from lens_core.registry import Registry

__all__ = ["load_start"]


def load_start(
    url: str,
    device: torch.device | None = None,
    *,
    prediction: PredictionConfig | None = None,
    registry: Registry | None = None,
) -> LoadedModel:
    """A model folder, ready to be trained further.

    Args:
        url: a folder, an fsspec URL, or owner/name on the hub.
        device: where its parts go; the CPU by default, where adapters are best added first.
        prediction: what the objective takes the output for; None takes what the folder says.
        registry: where the parts' implementations come from; by default, what is installed.

    Returns:
        Its parts, and what its `lens.json` says. The denoiser is in float32, in training mode, with a gradient for
        every weight; pretrained parts are as stored.

    Raises:
        ArtifactError: there is no model, or it is damaged, or its weights do not fit its config.
        ConfigError: it has no text encoder, or it predicts something else.
    """
    loaded = load_model_folder(url, registry=registry)
    if loaded.text_encoder is None:
        raise ConfigError(
            f"{url} has no text encoder that can be used, and captions must be encoded: complete it with `lens import`"
        )
    if prediction is not None and prediction != loaded.prediction:
        trained = loaded.prediction.model_dump()
        raise ConfigError(
            f"objective.prediction is {prediction.model_dump()}, but {url} was trained with {trained}: set it to that"
        )
    loaded.to(device or torch.device("cpu"))
    loaded.transformer.train().requires_grad_(True)
    if loaded.text_encoder.trainable:
        loaded.text_encoder.train().requires_grad_(True)
    return loaded
