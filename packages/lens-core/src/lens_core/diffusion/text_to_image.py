"""From requests to pictures: they may differ in size, prompt, seed and start, and share ragged batches.

Three stages over a few dozen requests at a time, each of which needs one part of the model only: encode the prompts,
denoise, decode. Suffixes: N image tokens of a batch, T text tokens, C channels, G requests of a batch, S steps,
U different times, H and W pixels.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens_core.diffusion.drawing import Drawing, Pack
from lens_core.diffusion.ragged import offsets_of
from lens_core.diffusion.requests import Request, check_requests
from lens_core.errors import ConfigError, LensError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np

    from lens_core.config.base import ComponentConfig
    from lens_core.diffusion.loaded_model import LoadedModel

__all__ = [
    "Request",
    "decode",
    "denoise",
    "draw",
    "encode",
    "encode_starts",
    "generate",
    "picture_HW3",
    "unit_CHW",
]

MAX_BATCH_TOKENS = 4096
"""Image and text tokens in one call of a part, guidance's second branch not counted. One request may have more."""

TOGETHER = 64
"""Requests that go through the stages together: how often parts are moved when they take turns on a device."""

Text = list[Tensor]
"""Features of one prompt: a tensor [T, E] per layer."""


def generate(
    model: LoadedModel,
    requests: Sequence[Request],
    *,
    sampler: ComponentConfig | None = None,
    guidance: float | None = None,
    on_batch: Callable[[int], None] | None = None,
    on_step: Callable[[int, float, list[Tensor]], None] | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[np.ndarray]:
    """Draw pictures.

    Args:
        model: a loaded model folder.
        requests: what to draw; their results do not depend on each other.
        sampler: by default the model's own.
        guidance: by default the model's own; 1 does without the second branch.
        on_batch: called after each batch with the number of pictures denoised.
        on_step: see `denoise`.
        max_batch_tokens: how much runs at once.

    Returns:
        uint8 [height, width, 3] each, in the order of the requests.

    Raises:
        ConfigError: a request that cannot be drawn.
    """
    drawn = draw(
        model,
        requests,
        sampler=sampler,
        guidance=guidance,
        on_batch=on_batch,
        on_step=on_step,
        max_batch_tokens=max_batch_tokens,
    )
    return [picture_HW3(pixels_CHW) for pixels_CHW in drawn]


def draw(
    model: LoadedModel,
    requests: Sequence[Request],
    *,
    sampler: ComponentConfig | None = None,
    guidance: float | None = None,
    on_batch: Callable[[int], None] | None = None,
    on_step: Callable[[int, float, list[Tensor]], None] | None = None,
    reference_rounding: bool = False,
    latents: bool = False,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> Iterator[Tensor]:
    """Pixels [3, H, W] in [0, 1] of each request, or with `latents` its tokens [N, C]; float32 on the CPU.

    For the other arguments and errors see `generate` and `denoise`.
    """
    check_requests(list(requests), model.autoencoder)
    for first in range(0, len(requests), TOGETHER):
        chunk = requests[first : first + TOGETHER]
        tokens = denoise(
            model,
            encode(model, chunk, guidance=guidance, max_batch_tokens=max_batch_tokens),
            sampler=sampler,
            guidance=guidance,
            on_batch=_counting_on(on_batch, first),
            on_step=on_step,
            reference_rounding=reference_rounding,
            max_batch_tokens=max_batch_tokens,
        )
        if latents:
            yield from (one.cpu() for one in tokens)
            continue
        for pixels_CHW in decode(model, chunk, tokens, max_batch_tokens=max_batch_tokens):
            yield unit_CHW(pixels_CHW)


@torch.inference_mode()
def encode(
    model: LoadedModel,
    requests: Sequence[Request],
    *,
    guidance: float | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[Request]:
    """The requests with the features of their prompts; each different text is encoded once.

    An empty prompt is no text at all, as in training. Negative prompts count only where guidance is not 1.
    """
    guided = _scale(model, guidance) != 1.0
    wanted = [r.prompt for r in requests if r.text is None]
    if guided:
        wanted += [r.negative for r in requests if r.negative_text is None]
    texts = list(dict.fromkeys(text for text in wanted if text))
    known: dict[str, Text] = {}
    if texts:
        with model.stage("text_encoder") as encoder:
            ids = encoder.tokenize(texts)
            for numbers in _batches([len(one) for one in ids], max_batch_tokens):
                lengths = [len(ids[i]) for i in numbers]
                ids_T = torch.tensor([token for i in numbers for token in ids[i]], dtype=torch.long)
                layers = encoder(ids_T.to(model.device), offsets_of(lengths))
                parts = zip(*(layer.split(lengths) for layer in layers), strict=True)
                known |= {texts[i]: list(part) for i, part in zip(numbers, parts, strict=True)}
    nothing = model.no_text()
    encoded = []
    for request in requests:
        text = known.get(request.prompt, nothing) if request.text is None else request.text
        negative = known.get(request.negative, nothing) if request.negative_text is None else request.negative_text
        _check_text(text, nothing)
        _check_text(negative, nothing)
        encoded.append(replace(request, text=text, negative_text=negative if guided else None))
    return encoded


@torch.inference_mode()
def denoise(
    model: LoadedModel,
    requests: Sequence[Request],
    *,
    sampler: ComponentConfig | None = None,
    guidance: float | None = None,
    on_batch: Callable[[int], None] | None = None,
    on_step: Callable[[int, float, list[Tensor]], None] | None = None,
    reuse_guidance: bool = False,
    reference_rounding: bool = False,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[Tensor]:
    """Image tokens [N, C] in float32 of each request, whose features `encode` has filled in.

    Args:
        model: whose denoiser, sampler and guidance to use.
        requests: what to draw.
        sampler: by default the model's own.
        guidance: by default the model's own; 1 does without the second branch.
        on_batch: called after each batch with the number of requests done.
        on_step: called after each step with its number, the time that the first request's tokens have come to, and
            the tokens of the batch's requests.
        reuse_guidance: see `Drawing`.
        reference_rounding: round the time as the released pipeline does: in thousandths, in the dtype of the weights.
        max_batch_tokens: how much runs at once.
    """
    built = model.registry.build("samplers", sampler or model.sampler)
    scale = _scale(model, guidance)
    drawings = [
        Drawing(
            model,
            request,
            sampler=built,
            guidance=scale,
            clean_NC=clean,
            reuse_guidance=reuse_guidance,
            reference_rounding=reference_rounding,
        )
        for request, clean in zip(requests, encode_starts(model, requests), strict=True)
    ]
    sizes = [one.grid[0] * one.grid[1] + _length(one.request.text) for one in drawings]
    finished = 0
    with model.stage("transformer"):
        for numbers in _batches(sizes, max_batch_tokens):
            batch = [drawings[number] for number in numbers]
            _finish(model, batch, on_step)
            finished += len(batch)
            if on_batch:
                on_batch(finished)
    return [one.tokens_NC for one in drawings]


@torch.inference_mode()
def decode(
    model: LoadedModel,
    requests: Sequence[Request],
    tokens: Sequence[Tensor],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[Tensor]:
    """Pixels [3, H, W] of each request, about within [-1, 1]; equal sizes are decoded together."""
    grids = [request.grid(model.autoencoder.stride) for request in requests]
    pixels: dict[int, Tensor] = {}
    with model.stage("autoencoder"):
        for grid in dict.fromkeys(grids):
            members = [i for i, other in enumerate(grids) if other == grid]
            for numbers in _batches([grid[0] * grid[1]] * len(members), max_batch_tokens):
                which = [members[number] for number in numbers]
                decoded = model.autoencoder.decode(torch.stack([tokens[i] for i in which]), grid)
                if not bool(torch.isfinite(decoded).all()):
                    raise LensError(
                        f"the picture is not finite: weights in {model.dtype} overflow or are damaged; try bfloat16"
                    )
                pixels |= dict(zip(which, decoded, strict=True))
    return [_kept(request, pixels[i]) for i, request in enumerate(requests)]


def unit_CHW(pixels_CHW: Tensor) -> Tensor:
    """Decoded pixels, within [0, 1]; float32 on the CPU."""
    return ((pixels_CHW.float().clamp(-1, 1) + 1) / 2).cpu()


def picture_HW3(pixels_CHW: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of pixels in [0, 1]; the only rounding, so that a picture drawn again has the same bits."""
    picture: np.ndarray = (pixels_CHW * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return picture


def _finish(
    model: LoadedModel, batch: list[Drawing], on_step: Callable[[int, float, list[Tensor]], None] | None
) -> None:
    """Take all steps of some drawings; one that starts with a picture may have fewer than its neighbours."""
    step, pack = 0, Pack(model, batch)
    while True:
        pack.step()
        if on_step:
            # From the CPU's copy: to read the device's would wait for the step.
            on_step(step, float(batch[0].times_S[batch[0].taken]), [one.tokens_NC for one in batch])
        step += 1
        if pack.stale:
            ahead = [one for one in pack.drawings if not one.done]
            if not ahead:
                return
            pack = Pack(model, ahead)


@torch.inference_mode()
def encode_starts(model: LoadedModel, requests: Sequence[Request]) -> list[Tensor | None]:
    """The tokens [N, C] of each request's start, in float32."""
    if all(request.start is None for request in requests):
        return [None] * len(requests)
    clean: list[Tensor | None] = []
    with model.stage("autoencoder") as autoencoder:
        for request in requests:
            pixels = request.start and request.start.pixels_CHW.to(model.device)[None]
            clean.append(None if pixels is None else autoencoder.encode(pixels)[0].float())
    return clean


def _kept(request: Request, pixels_CHW: Tensor) -> Tensor:
    """The picture with what a mask protects put back, pixel for pixel."""
    start = request.start
    if start is None or start.mask_HW is None:
        return pixels_CHW
    return torch.where(start.mask_HW.to(pixels_CHW.device), pixels_CHW, start.pixels_CHW.to(pixels_CHW))


def _counting_on(on_batch: Callable[[int], None] | None, first: int) -> Callable[[int], None] | None:
    return on_batch and (lambda done: on_batch(first + done))


def _scale(model: LoadedModel, guidance: float | None) -> float:
    scale = model.guidance if guidance is None else guidance
    if not math.isfinite(scale):
        raise ConfigError(f"a guidance of {scale} is no number to guide by")
    return scale


def _check_text(text: Text, nothing: Text) -> None:
    """Features must have the layers and the width that the denoiser takes."""
    if len(text) != len(nothing) or any(a.shape[1:] != b.shape[1:] for a, b in zip(text, nothing, strict=True)):
        raise ConfigError(
            f"features of shapes {[tuple(layer.shape) for layer in text]} are not the {len(nothing)} layers of width "
            f"{nothing[0].shape[-1]} that the model takes"
        )


def _length(text: Text | None) -> int:
    return len(text[0]) if text else 0


def _batches(sizes: Iterable[int], limit: int) -> Iterator[list[int]]:
    """Numbers 0, 1, … in runs whose sizes add up to `limit` at most; a single one may be larger."""
    batch: list[int] = []
    total = 0
    for number, size in enumerate(sizes):
        if batch and total + size > limit:
            yield batch
            batch, total = [], 0
        batch.append(number)
        total += size
    if batch:
        yield batch
