"""The receipt of a served picture: all that it takes to draw it again, and the hashes to compare it by.

It has every key that `lens generate` writes, so that `lens trace` follows it like any other, and more; see the
reference of formats. `lens_serve.provenance.verify` reads it.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from lens_core import __version__
from lens_serve.listening import is_private

if TYPE_CHECKING:
    from lens_serve.api.orders import Order
    from lens_serve.config import ServeSettings
    from lens_serve.engine.events import Picture
    from lens_serve.engine.messages import Draw, ModelInfo, StartPicture
    from lens_serve.rewriting import Rewritten

__all__ = ["RECEIPT_VERSION", "receipt", "sha256_of", "versions"]

RECEIPT_VERSION = 1

_LIBRARIES = ("torch", "transformers", "pillow")
"""What decides on bits: of the numbers, of the text encoders, and of files that lose some."""


def receipt(
    order: Order, draw: Draw, picture: Picture, rewritten: Rewritten, model: ModelInfo, settings: ServeSettings
) -> dict[str, Any]:
    """The receipt of a picture that was just drawn, fit for JSON.

    Args:
        order: what was asked for.
        draw: the job of this picture.
        picture: what came of it.
        rewritten: the prompt that was drawn.
        model: what drew it.
        settings: the server's.
    """
    served = next(served for served in settings.models if served.name == draw.model)
    made: dict[str, Any] = {
        "format_version": RECEIPT_VERSION,
        "prompt": order.prompt,
        "rewritten_prompt": draw.prompt,
        "negative": draw.negative,
        "prompt_sha256": sha256_of(order.prompt),
        "rewritten_sha256": sha256_of(draw.prompt),
        "negative_sha256": sha256_of(draw.negative),
        "rewrite": {"outcome": rewritten.outcome, "by": rewritten.by, "template": rewritten.template},
        "seed": draw.seed,
        "index": draw.index,
        "height": draw.height,
        "width": draw.width,
        "sampler": {**model.sampler, "steps": draw.steps},
        "guidance": draw.guidance,
        "tier": draw.tier,
        "model": model.hash,
        "dtype": model.dtype,
        "asked_dtype": served.dtype,
        "device": picture.features.get("device"),
        "kernels": picture.features.get("kernels"),
        "latent_sha256": picture.latent_sha256,
        "pixel_sha256": picture.pixel_sha256,
        "lens": __version__,
        "versions": versions(),
    }
    if "threads" in picture.features:
        made["threads"] = int(picture.features["threads"])
    if draw.lora is not None:
        made["lora"] = {"name": draw.lora, "scale": draw.lora_scale}
    if draw.start is not None:
        made["start"] = _start(draw.start)
    if is_private(settings.listen):
        # Whoever gets this picture is on this machine. Others are not told what its folders are called.
        made["model_folder"] = served.folder
    return made


def sha256_of(text: str) -> str:
    """Of its UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Of the libraries that decide on bits, as far as they are installed; none of them is imported."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _start(start: StartPicture) -> dict[str, Any]:
    """What a picture was drawn on, by its hash."""
    said: dict[str, Any] = {"pixel_sha256": hashlib.sha256(start.pixels).hexdigest(), "strength": start.strength}
    if start.mask is not None:
        said["mask_sha256"] = hashlib.sha256(start.mask).hexdigest()
    return said
