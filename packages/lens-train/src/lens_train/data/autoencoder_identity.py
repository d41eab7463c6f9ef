"""Which autoencoder made some tokens: tokens of one are noise to a model that was trained on those of another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from lens_core.config.base import config_hash

if TYPE_CHECKING:
    from lens_core.contracts.diffusion import Autoencoder

__all__ = ["identity"]


def identity(autoencoder: Autoencoder) -> str:
    """sha256 (hex) of an autoencoder's settings and weights; where its files lie, and how it decodes, do not matter."""
    settings = autoencoder.config.model_dump(mode="json", exclude={"path", "tile"})
    digest = hashlib.sha256(config_hash(settings).encode())
    if isinstance(autoencoder, nn.Module):
        for name, tensor in sorted(autoencoder.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
