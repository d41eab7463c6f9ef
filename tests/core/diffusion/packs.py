"""Samples for a denoiser: each can stand alone or share a ragged batch with others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lens_core.config.prediction import PredictionConfig
from lens_core.diffusion import LensTransformer2DModel, LoadedModel, RaggedBatch, save_model_folder
from lens_core.diffusion.ragged import offsets_of
from lens_core.diffusion.text_encoders.small.encoder import SmallTextEncoder

TINY = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "enc_hidden_dim": 24,
    "axes_dims_rope": (4, 6, 6),
    "selected_layer_index": (0, 1, 2, 3),
}
SHAPES = (((2, 3), 5), ((4, 4), 0), ((1, 2), 3), ((3, 3), 9), ((4, 4), 7), ((1, 1), 1))
"""Grids and text lengths that share nothing."""


@dataclass(frozen=True)
class Sample:
    grid: tuple[int, int]
    image: Tensor  # [N, C]
    text: tuple[Tensor, ...]  # a tensor [T, E] per layer
    timestep: Tensor  # []

    def to(self, dtype):
        text = tuple(layer.to(dtype) for layer in self.text)
        return replace(self, image=self.image.to(dtype), text=text, timestep=self.timestep.to(dtype))


def random_samples(shapes=SHAPES, *, channels=16, width=24, layers=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        Sample(
            grid=(h, w),
            image=normal(h * w, channels),
            text=tuple(normal(length, width) for _ in range(layers)),
            timestep=torch.rand((), generator=generator, dtype=torch.float64),
        ).to(dtype)
        for (h, w), length in shapes
    ]


def pack(samples):
    """One ragged batch of these samples, in this order."""
    return RaggedBatch(
        image=torch.cat([sample.image for sample in samples]),
        text=[torch.cat(layers) for layers in zip(*(sample.text for sample in samples), strict=True)],
        image_offsets=offsets_of([len(sample.image) for sample in samples]),
        text_offsets=offsets_of([len(sample.text[0]) for sample in samples]),
        grids=torch.tensor([sample.grid for sample in samples]),
        timestep=torch.stack([sample.timestep for sample in samples]),
    )


def random_lens(*, seed=0, dtype=torch.float64, **changes):
    """A tiny model in which no weight is zero or one, so that every part of it shows."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LensTransformer2DModel(**{**TINY, **changes})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.to(dtype)


def random_model(folder, registry, *, prediction="velocity", guidance=3.0, shift="none", steps=3, seed=0):
    """A whole model that draws noise of a kind, saved in a folder.

    Fresh weights draw nothing (the first prediction is zero), so all of them are disturbed.
    """
    config = registry.parse(
        "models",
        {
            "type": "lens",
            "preset": "nano",
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "axes_dims_rope": [4, 6, 6],
        },
    )
    encoder_config = registry.parse(
        "text_encoders", {"type": "small", "vocab_size": 300, "width": 16, "heads": 2, "max_tokens": 32}
    )
    encoder = SmallTextEncoder.fit(encoder_config, ["a red circle", "two blue squares on green"], seed=seed)
    autoencoder = registry.parse("autoencoders", {"type": "pixels", "patch": 4})
    transformer = registry.build("models", config, in_channels=48, enc_hidden_dim=16, num_text_layers=1)
    generator = torch.Generator().manual_seed(seed)
    transformer.init_weights(seed)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    sampler = registry.parse("samplers", {"type": "flow-euler", "steps": steps, "shift": shift})
    settings = {
        "transformer": transformer,
        "text_encoder": encoder,
        "sampler": sampler,
        "prediction": PredictionConfig(type=prediction),
        "image_size": (16, 16),
        "guidance": guidance,
        "guidance_rescale": True,
    }
    settings["autoencoder"] = registry.build("autoencoders", autoencoder)
    save_model_folder(folder, model=config, parents=[], licence="MIT", **settings)
    return LoadedModel(**settings, registry=registry)
