"""What may be asked for: one picture each, of its own size, prompt, seed, and perhaps from a picture to start with.

Suffixes: N image tokens, T text tokens, C token channels, E text width, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lens_core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from lens_core.contracts.diffusion import Autoencoder

__all__ = ["Request", "Start", "check_requests"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A picture to start from instead of noise.

    Args:
        pixels_CHW: [3, H, W] in [-1, 1], of the request's size.
        strength: the share of the steps that are taken, the last ones: 1 forgets the picture. At least one step is.
        mask_HW: bool [H, W], True where it may change; everywhere by default. What must not change comes back
            pixel for pixel.
    """

    pixels_CHW: Tensor
    strength: float = 0.6
    mask_HW: Tensor | None = None

    @classmethod
    def of(cls, picture_HW3: np.ndarray, *, strength: float, mask_HW: np.ndarray | None = None) -> Start:
        """From a uint8 picture and a bool mask."""
        pixels_CHW = torch.from_numpy(picture_HW3.astype("float32")).permute(2, 0, 1) / 127.5 - 1
        mask = None if mask_HW is None else torch.from_numpy(mask_HW.copy())
        return cls(pixels_CHW=pixels_CHW, strength=strength, mask_HW=mask)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to draw. The same model, prompt, size, seed and index give the same picture.

    Args:
        prompt: what to draw.
        height: in pixels, a multiple of the model's stride.
        width: likewise.
        seed: of the noise.
        index: which of a seed's pictures.
        negative: what to steer away from; empty is no text at all.
        text: features of the prompt, a tensor [T, E] per layer, instead of encoding it.
        negative_text: likewise of the negative prompt.
        noise_NC: the noise [N, C], instead of the seed's.
        start: a picture to start from.
    """

    prompt: str = ""
    height: int
    width: int
    seed: int = 0
    index: int = 0
    negative: str = ""
    text: list[Tensor] | None = None
    negative_text: list[Tensor] | None = None
    noise_NC: Tensor | None = None
    start: Start | None = None

    def grid(self, stride: int) -> tuple[int, int]:
        """Height and width in tokens."""
        return self.height // stride, self.width // stride


def check_requests(requests: list[Request], autoencoder: Autoencoder) -> None:
    """Refuse what cannot be drawn, before anything is.

    Raises:
        ConfigError: a size that is no multiple of the stride, or noise, a start or a mask that does not fit.
    """
    stride, channels = autoencoder.stride, autoencoder.channels
    for request in requests:
        size = f"{request.width}x{request.height}"
        if request.height % stride or request.width % stride or min(request.height, request.width) <= 0:
            raise ConfigError(f"a size of {size} is not a multiple of {stride} pixels")
        height, width = request.grid(stride)
        if request.noise_NC is not None and request.noise_NC.shape != (height * width, channels):
            raise ConfigError(
                f"latents of shape {tuple(request.noise_NC.shape)} are not the {height * width} tokens of {channels} "
                f"channels of a {size} picture"
            )
        if (start := request.start) is None:
            continue
        if start.pixels_CHW.shape != (3, request.height, request.width):
            found = "x".join(map(str, reversed(start.pixels_CHW.shape[1:])))
            raise ConfigError(f"the picture to start from is {found}, not {size}")
        if start.mask_HW is not None and start.mask_HW.shape != (request.height, request.width):
            found = "x".join(map(str, reversed(start.mask_HW.shape)))
            raise ConfigError(f"the mask is {found}, not {size}")
        if not 0 < start.strength <= 1:
            raise ConfigError(f"a strength of {start.strength} is not above 0 and at most 1")
