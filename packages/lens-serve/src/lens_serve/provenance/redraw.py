"""Drawing a picture again from what its receipt says: alone, as the tier `exact` draws it."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lens_core.diffusion.device import pick_device, pick_dtype
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.requests import Request, check_requests
from lens_core.diffusion.text_to_image import decode, denoise, encode
from lens_core.diffusion.weights.lora import load_lora
from lens_core.registry import load_registry
from lens_serve.engine.loaded import device_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from torch import Tensor

    from lens_core.config.base import ComponentConfig
    from lens_core.diffusion.device import DeviceName

__all__ = ["Redrawn", "redraw"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Redrawn:
    """A picture that was drawn again: uint8 [H, W, 3], the hash of its latents, and on what."""

    image_HW3: np.ndarray
    latent_sha256: str
    device: str


def redraw(
    model: str,
    *,
    prompt: str,
    negative: str,
    height: int,
    width: int,
    seed: int,
    index: int,
    sampler: ComponentConfig,
    guidance: float,
    reuse_guidance: bool,
    dtype: str | None,
    loras: Sequence[tuple[str, float]],
    device: DeviceName,
    threads: int | None = None,
) -> Redrawn:
    """Draw a picture; see the reference of formats for what the arguments are.

    Args:
        model: the model folder.
        prompt: as it was drawn.
        negative: likewise.
        height, width: in pixels.
        seed, index: of the noise.
        sampler: with its options.
        guidance: the scale.
        reuse_guidance: as the tier `fast` does; see `lens_core.diffusion.drawing.Drawing`.
        dtype: of the denoiser.
        loras: files and scales.
        device: where to draw.
        threads: that a CPU computes with; by default as many as torch likes.

    Raises:
        LensError: it cannot be drawn here.
    """
    registry = load_registry()
    # float32 is what a denoiser has when nobody asks for a dtype, and then the other parts are as they were stored.
    loaded = load_model_folder(model, registry=registry, dtype=None if dtype == "float32" else pick_dtype(dtype))
    request = Request(prompt=prompt, negative=negative, height=height, width=width, seed=seed, index=index)
    check_requests([request], loaded.autoencoder)
    for number, (file, scale) in enumerate(loras):
        load_lora(loaded.transformer, Path(file), name=f"lora{number}", scale=scale)
    loaded.to(pick_device(device))
    with _threads(threads):
        encoded = encode(loaded, [request], guidance=guidance)
        (tokens_NC,) = denoise(loaded, encoded, sampler=sampler, guidance=guidance, reuse_guidance=reuse_guidance)
        (pixels_CHW,) = decode(loaded, encoded, [tokens_NC])
    return Redrawn(
        image_HW3=_bytes(pixels_CHW),
        latent_sha256=hashlib.sha256(tokens_NC.float().cpu().numpy().astype("<f4").tobytes()).hexdigest(),
        device=device_name(loaded.device),
    )


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Compute with that many: a long sum that is shared among threads is added up in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bytes(pixels_CHW: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of pixels in [-1, 1], rounded as `generate` does."""
    unit_CHW = ((pixels_CHW.float().clamp(-1, 1) + 1) / 2).cpu()
    image_HW3: np.ndarray = (unit_CHW * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return image_HW3
