"""What a model folder says to readers that know diffusers only: the index of its parts, and the scheduler.

Each part is named by a library and a class that can be imported from it as it is, so that nothing of ours has to be put
into diffusers' or transformers' namespaces, as the released pipeline does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lens_core import __version__

if TYPE_CHECKING:
    from torch import nn

    from lens_core.config.base import ComponentConfig

__all__ = ["model_index", "scheduler_config"]


def model_index(
    transformer: nn.Module, text_encoder: Any, autoencoder: Any, sampler: ComponentConfig
) -> dict[str, Any]:
    """`model_index.json`: for each part [library, class]; [null, null] for one that is absent."""
    language = getattr(text_encoder, "model", None)  # of transformers, in the encoders that wrap one
    vae = getattr(autoencoder, "vae", None)  # of diffusers, likewise
    encoder: list[str | None] = [None, None]
    if language is not None:
        encoder = ["transformers", type(language).__name__]
    elif text_encoder is not None:
        encoder = ["lens_core", text_encoder.config.type]
    return {
        "_class_name": "LensPipeline",
        "_lens_version": __version__,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]
        if sampler.type == "flow-euler"
        else ["lens_core", sampler.type],
        "text_encoder": encoder,
        "tokenizer": [None, None] if language is None else ["transformers", "AutoTokenizer"],
        "transformer": [type(transformer).__module__.split(".models.")[0], type(transformer).__name__],
        "vae": ["lens_core", autoencoder.config.type] if vae is None else ["diffusers", type(vae).__name__],
    }


def scheduler_config(sampler: ComponentConfig) -> dict[str, Any]:
    """`scheduler_config.json`, in the words of diffusers where it has the sampler.

    diffusers has no word for a rule: a dynamic shift is computed by its pipelines, from these numbers or their own.
    """
    fields = sampler.model_dump(mode="json")
    if sampler.type != "flow-euler":
        return fields
    shift = fields["shift"]
    dynamic = isinstance(shift, str) and shift != "none"
    base, most = (1.0, 1.3) if shift == "trained" else (0.5, 1.15)  # of `trained_mu`; diffusers' defaults
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "use_dynamic_shifting": dynamic,
        "time_shift_type": "exponential",
        "shift": 3.0 if dynamic else 1.0 if shift == "none" else math.exp(shift),
        "base_shift": base,
        "max_shift": most,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }
