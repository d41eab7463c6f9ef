"""A model that draws exactly what a prompt of the scenes says, and one that hears the prompt and draws nothing.

They stand where a trained denoiser and a text encoder would: what the stages around a model do can then be known
exactly. The text encoder hands the prompt over letter by letter; the denoiser reads it, renders it, and puts out x0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import nn

from lens_core.config.base import ComponentConfig
from lens_core.config.prediction import PredictionConfig
from lens_core.datasets.scenes.language import parse_prompt
from lens_core.datasets.scenes.render import render
from lens_core.datasets.scenes.world import QUADRANTS, Scene, SceneObject
from lens_core.diffusion.model_folder import save_model_folder
from lens_core.plugins import Offer, Plugin
from lens_core.registry import load_registry, registry_of
from lens_core.specs import KINDS, ModelSpec, TextEncoderSpec

STRIDE = 8


class OracleConfig(ComponentConfig):
    type: Literal["oracle"] = "oracle"
    mute: bool = False


class LettersConfig(ComponentConfig):
    type: Literal["letters"] = "letters"


def drawn(prompt, size):
    """The picture of a prompt: what it says, the rest by default."""
    said, background, _ = parse_prompt(prompt)
    objects = [
        SceneObject(**{"size": "large", "quadrant": quadrant, **item})
        for item, quadrant in zip(said, QUADRANTS, strict=False)
    ]
    return render(Scene(background=background or "white", objects=tuple(objects)), size)


class Oracle(nn.Module):
    def __init__(self, config, *, in_channels, enc_hidden_dim, num_text_layers):
        super().__init__()
        self.config = {"mute": config.mute}
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward_ragged(self, batch):
        return torch.cat(
            [
                self._x0(text, grid)
                for text, grid in zip(batch.text[0].split(batch.text_lengths), batch.grids.tolist(), strict=True)
            ]
        )

    def _x0(self, text, grid):
        prompt = bytes(text[:, 0].to(torch.uint8).tolist()).decode()
        size = grid[0] * STRIDE
        pixels = np.full((size, size, 3), 246, np.uint8) if self.config["mute"] else drawn(prompt, size)
        x = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1
        # (h p) (w q) c -> (h w) (c p q)
        patches = x.view(grid[0], STRIDE, grid[1], STRIDE, 3).permute(0, 2, 4, 1, 3)
        return patches.reshape(grid[0] * grid[1], -1)


class Letters(nn.Module):
    num_layers = 1
    width = 1
    trainable = False

    def __init__(self, config):
        super().__init__()
        self.config = config

    def tokenize(self, texts):
        return [list(text.encode()) for text in texts]

    def forward(self, ids_T, offsets):
        return [ids_T.float()[:, None]]

    def save(self, folder):
        pass

    @classmethod
    def from_folder(cls, config, folder, **_):
        return cls(config)


def oracle_folder(registry, output, *, mute=False):
    """Put a model folder of the oracle, or of its mute sister, into an artefact."""
    config = OracleConfig(mute=mute)
    folder = output.local_dir("model")
    folder.rmdir()
    save_model_folder(
        folder,
        transformer=Oracle(config, in_channels=192, enc_hidden_dim=1, num_text_layers=1),
        model=config,
        text_encoder=Letters(LettersConfig()),
        autoencoder=registry.build("autoencoders", registry.parse("autoencoders", "pixels")),
        sampler=registry.parse("samplers", {"type": "flow-euler", "steps": 2}),
        prediction=PredictionConfig(type="x"),
        image_size=(32, 32),
        guidance=1.0,
        guidance_rescale=False,
        parents=[],
        licence="",
    )
    output.add_folder("", folder)


def registry_with_oracle():
    """What is installed, and these two."""
    return registry_with(
        {
            "models": ModelSpec(
                name="oracle",
                summary="Draws what the prompt says.",
                config=f"{__name__}:OracleConfig",
                target=f"{__name__}:Oracle",
            ),
            "text_encoders": TextEncoderSpec(
                name="letters",
                summary="Hands the prompt over letter by letter.",
                config=f"{__name__}:LettersConfig",
                target=f"{__name__}:Letters",
            ),
        }
    )


def registry_with(own):
    """What is installed, and a plugin with these specs, by kind."""
    installed = load_registry()
    offers = [offer for kind in KINDS for name in installed[kind] for offer in installed[kind].offers[name]]
    plugin = Plugin(name="own", module=__name__, distribution="tests", version="0")
    return registry_of([*offers, *(Offer(kind=kind, spec=spec, plugin=plugin) for kind, spec in own.items())])
