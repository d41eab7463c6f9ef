"""The smallest denoiser. It sees one token at a time, so it is no good model, and easy to read.

Suffixes: N image tokens of all pictures, T text tokens of all prompts, G pictures, C token channels, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_acme.configs import MlpConfig
    from lens_core.diffusion import RaggedBatch


class Mlp(nn.Module):
    """Built by Lens as `Mlp(config, in_channels=..., enc_hidden_dim=..., num_text_layers=...)`."""

    def __init__(self, config: MlpConfig, *, in_channels: int, enc_hidden_dim: int, num_text_layers: int):
        super().__init__()
        # What a reader of the saved weights needs to know; it becomes transformer/config.json in the model folder.
        self.config = {**config.model_dump(), "in_channels": in_channels, "enc_hidden_dim": enc_hidden_dim}
        width = config.width
        self.image = nn.Linear(in_channels, width)
        self.text = nn.Linear(enc_hidden_dim * num_text_layers, width)
        self.place = nn.Linear(3, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.out = nn.Linear(width, in_channels)

    def init_weights(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def training_flops(
        self, image_lengths: Sequence[int], text_lengths: Sequence[int], *, text_gradient: bool
    ) -> float:
        tokens, pictures = sum(image_lengths), len(image_lengths)
        inner = sum(layer.weight.numel() for layer in (*self.hidden, self.out))
        entry = self.image.weight.numel() + self.place.weight.numel()
        # A multiply-add is 2 FLOPs; backward costs twice forward, or once where the input needs no gradient.
        text = self.text.weight.numel() * (6 if text_gradient else 4)
        return float(tokens * (6 * inner + 4 * entry) + pictures * text)

    def forward_ragged(self, batch: RaggedBatch) -> Tensor:
        lengths_G = batch.image_offsets.diff().to(batch.image.device)
        # What all tokens of a picture share, repeated for each of them.
        about_GD = self.text(_means(batch))
        about_ND = about_GD.repeat_interleave(lengths_G, dim=0)
        x_ND = self.image(batch.image) + about_ND + self.place(_places(batch))
        for layer in self.hidden:
            x_ND = x_ND + layer(nn.functional.silu(x_ND))
        return self.out(x_ND)


def _means(batch: RaggedBatch) -> Tensor:
    """The mean text features of each picture, layers side by side; zeros for an empty prompt."""
    features_TE = torch.cat(batch.text, dim=-1)
    spans = zip(batch.text_offsets[:-1].tolist(), batch.text_offsets[1:].tolist(), strict=True)
    return torch.stack([features_TE[start:end].sum(0) / max(end - start, 1) for start, end in spans])


def _places(batch: RaggedBatch) -> Tensor:
    """Row, column and time of each token, all in [0, 1]: [N, 3]."""
    rows = []
    for (height, width), time in zip(batch.grids.tolist(), batch.timestep, strict=True):
        y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
        place = torch.stack([y.flatten(), x.flatten()], dim=-1).to(batch.image)
        rows.append(torch.cat([place, time.to(batch.image).expand(len(place), 1)], dim=-1))
    return torch.cat(rows)
