"""What `lens verify` does: draw a picture again from its receipt, and compare.

A receipt can be forged like any metadata; that a model draws these very pixels cannot. So all that a receipt says is
tried: the model's files against their hashes, the file's pixels against the receipt, and a picture that is drawn anew
against both.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_core import __version__, images
from lens_core.errors import ArtifactError, ConfigError, LensError
from lens_core.storage.artifacts import load_artifact
from lens_serve.images.encoders import encode_image
from lens_serve.provenance.claims import read_claims
from lens_serve.provenance.receipt import versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lens_serve.provenance.claims import Claims
    from lens_serve.provenance.redraw import Redrawn

__all__ = ["DifferentError", "psnr", "verify_file"]

ROUNDING_DB = 40.0
"""Sums in another order stay above it, in half precision too; another seed, prompt or step falls far below."""


class DifferentError(LensError):
    """A picture is not what its receipt says, or that cannot be told; the message says why."""


def verify_file(
    source: str,
    *,
    model: str,
    prompt: str | None = None,
    negative: str | None = None,
    lora: Sequence[str] = (),
    device: Any = "auto",
) -> Iterator[str]:
    """Check a picture, and yield a line for each finding, the verdict last.

    Args:
        source: a PNG, JPEG or WebP file with a receipt, or a receipt in JSON.
        model: the model folder.
        prompt: what was drawn, where the receipt holds only its hash.
        negative: likewise.
        lora: the files of the LoRAs, in the receipt's order.
        device: where to draw.

    Raises:
        DifferentError: the picture is not what the receipt says.
        LensError: something cannot be read or drawn.
    """
    said, image_HW3 = read_claims(source)
    known = {"device": said.device, "tier": said.tier}  # `lens generate` says neither
    yield f"receipt: {source}, by Lens {said.lens}" + "".join(f", {k} {v}" for k, v in known.items() if v)
    yield _check_model(said, model)
    if image_HW3 is not None and said.pixel_sha256 and said.format == "png":
        if _sha256(image_HW3) != said.pixel_sha256:
            raise DifferentError(f"{source}: its pixels are not those of its receipt: edited, or saved with loss")
        yield "file: its pixels are those of the receipt"
    drawn = _draw_again(said, image_HW3, model, prompt=prompt, negative=negative, lora=lora, device=device)
    changes = _changes(said, drawn)
    if changes:
        yield f"machine: {', '.join(changes)}; the same bits cannot be expected"
    same = {}
    for what, expected, found in (
        ("latents", said.latent_sha256, drawn.latent_sha256),
        ("pixels", said.pixel_sha256, _sha256(drawn.image_HW3)),
    ):
        if expected is not None:
            same[what] = expected == found
            yield f"{what}: {'the same bits' if same[what] else 'other bits'} when drawn again"
    if image_HW3 is None:
        yield _verdict_on_hashes(same, changes)
    else:
        yield _verdict_on_pixels(said, image_HW3, drawn, same, changes)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit images of one shape, in dB; infinite for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def _check_model(said: Claims, folder: str) -> str:
    """Whether the folder holds the model that the receipt names, to the last byte."""
    try:
        artifact = load_artifact(folder)
    except ArtifactError:
        return f"model: {folder} has no manifest; whether it is the right one, only the picture can tell"
    if said.model is None:
        return "model: the receipt does not say which; whether it is the right one, only the picture can tell"
    if artifact.hash != said.model:
        raise DifferentError(f"another model: the receipt says {said.model[:12]}, but {folder} is {artifact.hash[:12]}")
    for entry in artifact.files:
        digest = hashlib.sha256()
        with artifact.open(entry.path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != entry.sha256:
            raise DifferentError(f"another model: {artifact.url_of(entry.path)} is not what the manifest says")
    return f"model: {folder} is {artifact.hash[:12]}, with all its files"


def _draw_again(
    said: Claims,
    image_HW3: np.ndarray | None,
    model: str,
    *,
    prompt: str | None,
    negative: str | None,
    lora: Sequence[str],
    device: Any,
) -> Redrawn:
    height, width = said.height, said.width
    if height is None or width is None:
        if image_HW3 is None:
            raise ConfigError("the receipt does not say the picture's size: give the picture itself")
        height, width = image_HW3.shape[:2]
    if said.start is not None or said.image is not None:
        raise ConfigError("it was drawn from another picture, which its receipt does not hold: it cannot be redrawn")
    loras = said.all_loras()
    if len(lora) != len(loras):
        names = ", ".join(one.name for one in loras) or "none"
        raise ConfigError(f"LoRAs of the receipt: {names}; give the file of each with --lora")
    text, negative_text = said.drawn_prompt(prompt), said.drawn_negative(negative)
    from lens_serve.provenance.redraw import redraw  # noqa: PLC0415 (it imports torch)

    return redraw(
        model,
        prompt=text,
        negative=negative_text,
        height=height,
        width=width,
        seed=said.seed,
        index=said.index,
        sampler=said.sampler,
        guidance=said.guidance,
        reuse_guidance=said.tier == "fast",
        dtype=said.dtype,
        asked_dtype=said.asked(),
        loras=[(file, one.scale) for file, one in zip(lora, loras, strict=True)],
        device=device,
        threads=said.threads,
    )


def _changes(said: Claims, drawn: Redrawn) -> list[str]:
    """In what this machine is not the one that the receipt names, as far as that decides on bits."""
    here = versions()
    named = {"Lens": (said.lens, __version__), "device": (said.device, drawn.device)}
    named |= {name: (version, here.get(name, "none")) for name, version in said.versions.items()}
    return [f"{name} {then}, here {now}" for name, (then, now) in named.items() if then not in (None, now)]


def _verdict_on_hashes(same: dict[str, bool], changes: list[str]) -> str:
    if not same:
        raise DifferentError("the receipt has no hashes to compare with: give the picture itself")
    if not all(same.values()):
        why = "perhaps for the other machine" if changes else "on a machine like the one it names"
        raise DifferentError(f"other bits, {why}; how far off they are, only the picture itself can tell")
    return "verdict: identical, bit for bit"


def _verdict_on_pixels(
    said: Claims, image_HW3: np.ndarray, drawn: Redrawn, same: dict[str, bool], changes: list[str]
) -> str:
    """By the file's pixels; if its format loses some, the new picture is sent through the same loss first."""
    expected_HW3 = drawn.image_HW3
    if said.format != "png":
        expected_HW3 = images.decode(encode_image(expected_HW3, format=said.format, quality=said.quality))
    if image_HW3.shape != expected_HW3.shape:
        raise DifferentError("different: the file has another size than its receipt says")
    near = psnr(image_HW3, expected_HW3)
    if near == float("inf") and all(same.values()):
        return "verdict: identical, bit for bit"
    if near <= ROUNDING_DB and same.get("pixels"):
        raise DifferentError(f"the model draws what the receipt says, but this file was edited since ({near:.1f} dB)")
    if near <= ROUNDING_DB:
        raise DifferentError(f"different: the picture is {near:.1f} dB from what the model draws by its receipt")
    if said.tier == "exact" and not changes and not all(same.values()):
        raise DifferentError(f"different by rounding ({near:.1f} dB), where the tier exact promises the same bits")
    return f"verdict: equal up to rounding (PSNR {near:.1f} dB)"


def _sha256(image_HW3: np.ndarray) -> str:
    return hashlib.sha256(image_HW3.tobytes()).hexdigest()
