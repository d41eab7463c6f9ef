"""What `lens generate` does: load a model folder, draw one picture, write it with its receipt."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lens_core import __version__
from lens_core.diffusion.device import pick_device
from lens_core.diffusion.model_folder import load_model_folder
from lens_core.diffusion.receipt import png_with_receipt
from lens_core.diffusion.text_to_image import Request, generate
from lens_core.errors import ConfigError, LensError
from lens_core.registry import load_registry
from lens_core.storage import urls
from lens_core.storage.artifacts import load_artifact

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["generate_file", "parse_size"]

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
    device: Any,
) -> Iterator[str]:
    """Draw a picture and yield lines about it.

    Raises:
        LensError: a model, size, rewriter or device that cannot be used.
    """
    registry = load_registry()
    rewritten = prompt
    if rewriter:
        config = registry.parse("rewriters", rewriter)
        (rewritten,) = registry.build("rewriters", config).rewrite([prompt], seed=seed)
    loaded = load_model_folder(model, registry=registry).to(pick_device(device))
    height, width = parse_size(size) if size else loaded.image_size
    sampler = loaded.sampler
    if steps is not None:
        sampler = registry.parse("samplers", {**sampler.model_dump(), "steps": steps})
    request = Request(prompt=rewritten, height=height, width=width, seed=seed, negative=negative)
    (image,) = generate(loaded, [request], sampler=sampler, guidance=guidance)
    receipt = {
        "prompt": prompt,
        "rewritten_prompt": rewritten,
        "negative": negative,
        "seed": seed,
        "index": 0,
        "sampler": sampler.model_dump(mode="json"),
        "guidance": loaded.guidance if guidance is None else guidance,
        "model": _hash_of(model),
        "model_folder": model,
        "lens": __version__,
    }
    urls.write_bytes(output, png_with_receipt(image, receipt))
    if rewritten != prompt:
        yield f"prompt: {rewritten}"
    yield f"{output}: {width}x{height}, seed {seed}"


def parse_size(text: str) -> tuple[int, int]:
    """ "1024x768" (width by height) to (height, width).

    Raises:
        ConfigError: it is not of that form, or too large.
    """
    match = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", text.strip().lower())
    if match is None:
        raise ConfigError(f"--size {text!r} is not of the form WIDTHxHEIGHT, such as 1024x768")
    width, height = int(match[1]), int(match[2])
    if max(width, height) > MAX_SIDE:
        raise ConfigError(f"--size {text}: at most {MAX_SIDE} pixels a side")
    return height, width


def _hash_of(model: str) -> str | None:
    try:
        return load_artifact(model).hash
    except LensError:
        return None  # a model folder from elsewhere has no manifest
