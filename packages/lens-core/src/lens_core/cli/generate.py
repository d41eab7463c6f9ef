"""What `lens generate` does: load a model folder, draw one picture, write it with its receipt."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_core import __version__, images
from lens_core.config.base import NO_CREDENTIALS, has_credentials
from lens_core.config.checked import checked_component
from lens_core.diffusion.device import pick_device, pick_dtype
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.receipt import png_with_receipt
from lens_core.diffusion.requests import Request, Start
from lens_core.diffusion.resolutions import parse_size
from lens_core.diffusion.text_to_image import generate
from lens_core.diffusion.weights.lora import load_lora
from lens_core.errors import ConfigError, ImageError, LensError
from lens_core.pipeline.progress import Progress
from lens_core.registry import load_registry
from lens_core.storage import urls
from lens_core.storage.artifacts import load_artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

__all__ = ["generate_file"]

MAX_SIDE = 4096


def generate_file(
    prompt: str,
    *,
    model: str,
    output: str,
    size: str | None,
    steps: int | None,
    seed: int,
    guidance: float | None,
    negative: str,
    rewriter: str | None,
    image: str | None,
    mask: str | None,
    strength: float,
    lora: Sequence[str],
    dtype: str | None,
    offload: bool,
    device: Any,
) -> Iterator[str]:
    """Draw a picture and yield lines about it.

    Raises:
        LensError: a model, size, image, LoRA, rewriter or device that cannot be used.
    """
    if has_credentials(model):  # which would go into the picture's receipt
        raise ConfigError(f"--model: {NO_CREDENTIALS}")
    registry = load_registry()
    rewritten = prompt
    if rewriter:
        config = checked_component("rewriters", rewriter, registry)
        (rewritten,) = registry.build("rewriters", config).rewrite([prompt], seed=seed)
    if mask and not image:
        raise ConfigError("--mask needs --image: the picture to redraw a part of")
    loaded = load_model_folder(model, registry=registry, dtype=pick_dtype(dtype))
    for number, path in enumerate(lora):
        load_lora(loaded.transformer, Path(path), name=f"lora{number}")
    loaded.to(pick_device(device), take_turns=offload)
    stride = loaded.autoencoder.stride
    start = None
    height, width = parse_size(size, multiple=stride) if size else loaded.image_size
    picture = _read(image) if image else None
    if picture is not None and not size:
        height, width = (max(side // stride, 1) * stride for side in picture.shape[:2])
    if max(height, width) > MAX_SIDE:
        raise ConfigError(f"--size {width}x{height}: at most {MAX_SIDE} pixels a side")
    if picture is not None:
        start = Start.of(
            images.fit(picture, height, width),
            strength=strength,
            mask_HW=images.fit(_read(mask), height, width).mean(-1) >= 128 if mask else None,
        )
    sampler = loaded.chosen_sampler(steps=steps)
    request = Request(prompt=rewritten, height=height, width=width, seed=seed, negative=negative, start=start)
    total = sampler.model_dump().get("steps")
    if total and start:
        total = max(1, round(total * strength))
    with _bar(total) as on_step:
        (drawn,) = generate(loaded, [request], sampler=sampler, guidance=guidance, on_step=on_step)
    receipt = {
        "prompt": prompt,
        "rewritten_prompt": rewritten,
        "negative": negative,
        "seed": seed,
        "index": 0,
        "sampler": sampler.model_dump(mode="json"),
        "guidance": loaded.guidance if guidance is None else guidance,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "asked_dtype": dtype,
        "model": _hash_of(model),
        "model_folder": model,
        "lens": __version__,
    }
    if image:
        receipt |= {"image": Path(image).name, "mask": mask and Path(mask).name, "strength": strength}
    if lora:
        receipt["loras"] = [Path(path).name for path in lora]
    urls.write_bytes(output, png_with_receipt(drawn, receipt))
    if rewritten != prompt:
        yield f"prompt: {rewritten}"
    yield f"{output}: {width}x{height}, seed {seed}"


@contextmanager
def _bar(steps: int | None) -> Iterator[Callable[[int, float, Any], None] | None]:
    """A live bar of the steps, where somebody may be watching."""
    if not sys.stderr.isatty():
        yield None
        return
    progress = Progress()
    progress.open("generate")
    progress.start(steps, "steps")
    try:
        yield lambda step, _time, _tokens: progress.update(step + 1)
    finally:
        progress.close("stage-end")


def _read(path: str) -> np.ndarray:
    try:
        return images.decode(urls.read_bytes(path))
    except ImageError as error:
        raise ConfigError(f"{path}: {error}") from error


def _hash_of(model: str) -> str | None:
    try:
        return load_artifact(model).hash
    except LensError:
        return None  # a model folder from elsewhere has no manifest
