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
from lens_core.diffusion.text_to_image import decode, denoise, encode, picture_HW3, unit_CHW
from lens_core.diffusion.weights.lora import load_lora
from lens_core.registry import load_registry
from lens_serve.engine.loaded import device_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from lens_core.config.base import ComponentConfig
    from lens_core.config.devices import DeviceName

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
    asked_dtype: str | None,
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
        dtype: of the denoiser; None: float32.
        asked_dtype: of all parts; None: the others are as they were stored.
        loras: files and scales.
        device: where to draw.
        threads: that a CPU computes with; by default as many as torch likes.

    Raises:
        LensError: it cannot be drawn here.
    """
    registry = load_registry()
    loaded = load_model_folder(
        model, registry=registry, dtype=pick_dtype(asked_dtype), denoiser_dtype=pick_dtype(dtype or "float32")
    )
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
        image_HW3=picture_HW3(unit_CHW(pixels_CHW)),
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
