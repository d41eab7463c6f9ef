"""What a model's calls cost on this device, measured before an engine says that it is ready.

One picture's worth of every call, and ticks of growing size for as long as a small budget lasts: the scheduler then
knows how large a tick fills the device, and learns the rest while it works.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.diffusion.requests import Request
from lens_core.diffusion.text_to_image import decode, encode
from lens_serve.engine.cost import Branch, calibrate
from lens_serve.engine.messages import Costs
from lens_serve.engine.trouble import give_back, out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_core.diffusion.loaded_model import LoadedModel

__all__ = ["assumed", "flops_of", "measured", "synchronize", "warm_up"]

BUDGET_S = 1.0
"""For ticks; a call of the model's own size is made even if it takes longer."""
REPEATS = 3
COPIES = (2, 4, 8, 16, 32, 64)
"""Of the model's own size, in a tick; the ladder ends with the budget or the memory."""
PROMPTS = [
    f"a {thing} on a wooden table, seen from above, in soft light"
    for thing in ("red apple", "blue cup", "book", "candle", "black cat", "letter", "green leaf", "clock")
]


def measured(model: LoadedModel) -> tuple[Costs, int]:
    """Costs, and the knee: the fewest tokens that fill the device; see `cost.calibrate`."""
    own = warm_up(model)
    with torch.inference_mode():
        costs = _measured_ends(model, own.text_tokens)

        def measure(sequences: list[Branch]) -> float:
            return _tick(model, sequences)

        own_s = measure([own])
        repeats = REPEATS if REPEATS * own_s < BUDGET_S else 1
        ladder = [[replace(own, image_tokens=_tokens(model, part))] for part in (4, 2, 1)]
        spent_s = 2 * repeats * own_s
        for copies in COPIES:
            if spent_s + copies * own_s > BUDGET_S:
                break
            try:
                spent_s += (1 + repeats) * measure([own] * copies)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                give_back(model.device)
                break
            ladder.append([own] * copies)
        return calibrate(measure, costs, ladder, repeats=repeats)


@torch.inference_mode()
def warm_up(model: LoadedModel) -> Branch:
    """Draw a picture of the model's own size in one step, so that nobody's has to wait for what first calls prepare.

    Returns:
        What its denoiser saw.
    """
    height, width = model.image_size
    (request,) = encode(model, [Request(prompt=PROMPTS[0], height=height, width=width)], guidance=1.0)
    assert request.text is not None
    own = Branch(image_tokens=_tokens(model, 1), text_tokens=len(request.text[0]))
    _tick(model, [own])
    decode(model, [request], [torch.zeros(own.image_tokens, model.autoencoder.channels, device=model.device)])
    return own


def assumed(model: LoadedModel) -> tuple[Costs, int]:
    """The same by rule of thumb, for engines that are not to measure first."""
    per_image, per_text, per_square = flops_of(model, *_own(model))
    on_gpu = model.device.type != "cpu"
    costs = Costs(
        per_image=per_image,
        per_text=per_text,
        per_square=per_square,
        tick_s=0.004,
        flops_per_s=4e14 if on_gpu else 3e10,
        half_tokens=350.0,
        encode_s=0.01,
        encode_token_s=1e-5 if on_gpu else 1e-3,
        decode_s=0.005,
        decode_pixel_s=2.5e-8 if on_gpu else 1e-6,
    )
    return costs, 4096


def flops_of(model: LoadedModel, image_tokens: int, text_tokens: int) -> tuple[float, float, float]:
    """FLOPs of a forward pass per image token, per text token, and per square of both, as `Costs` has them.

    A step of training is three times that. What a segment costs whatever its size is left out: it is next to nothing.
    """
    n, m = image_tokens, text_tokens
    points = np.array([(n, 0), (2 * n, 0), (n, m), (2 * n, m), (n, 2 * m), (3 * n, 3 * m)], float)
    flops = [model.transformer.training_flops([int(i)], [int(t)], text_gradient=False) / 3 for i, t in points]
    terms = np.column_stack([points, points.sum(1) ** 2, np.ones(len(points))])
    scale = terms.max(0)
    solution = np.linalg.lstsq(terms / scale, np.array(flops), rcond=None)[0] / scale
    per_image, per_text, per_square = (max(0.0, float(value)) for value in solution[:3])
    return per_image, per_text, per_square


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _own(model: LoadedModel) -> tuple[int, int]:
    return _tokens(model, 1), 64


def _grid(model: LoadedModel, part: int) -> tuple[int, int]:
    """Of the model's own size, or its sides divided."""
    stride = model.autoencoder.stride
    height, width = (max(1, side // stride // part) for side in model.image_size)
    return height, width


def _tokens(model: LoadedModel, part: int) -> int:
    height, width = _grid(model, part)
    return height * width


def _tick(model: LoadedModel, sequences: list[Branch]) -> float:
    """Seconds of a call of the denoiser; what the tokens are makes no difference."""
    lengths = [sequence.image_tokens for sequence in sequences]
    texts = [sequence.text_tokens for sequence in sequences]
    grids = {_tokens(model, part): _grid(model, part) for part in (4, 2, 1)}
    place: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    batch = RaggedBatch(
        image=torch.randn(sum(lengths), model.autoencoder.channels, **place),
        text=[torch.randn(sum(texts), layer.shape[-1], **place) for layer in model.no_text()],
        image_offsets=offsets_of(lengths),
        text_offsets=offsets_of(texts),
        grids=torch.tensor([grids[length] for length in lengths]),
        timestep=torch.full((len(sequences),), 0.5, device=model.device),
    )
    return _timed(model, lambda: model.transformer.forward_ragged(batch))


def _measured_ends(model: LoadedModel, text_tokens: int) -> Costs:
    """Costs whose parts before and after the ticks are measured."""

    def encoding(count: int) -> float:
        some = [Request(prompt=prompt, height=1, width=1) for prompt in PROMPTS[:count]]
        return _timed(model, lambda: encode(model, some, guidance=1.0))

    def decoding(part: int) -> float:
        height, width = _grid(model, part)
        stride = model.autoencoder.stride
        request = Request(height=height * stride, width=width * stride)
        tokens_NC = torch.zeros(height * width, model.autoencoder.channels, device=model.device)
        return _timed(model, lambda: decode(model, [request], [tokens_NC]))

    pixels = [_tokens(model, part) * model.autoencoder.stride**2 for part in (2, 1)]
    encode_s, encode_token_s = _line((1, len(PROMPTS)), (text_tokens, len(PROMPTS) * text_tokens), encoding)
    decode_s, decode_pixel_s = _line((2, 1), tuple(pixels), decoding)
    per_image, per_text, per_square = flops_of(model, _tokens(model, 1), max(1, text_tokens))
    return Costs(
        per_image=per_image,
        per_text=per_text,
        per_square=per_square,
        tick_s=0.0,
        flops_per_s=1.0,
        half_tokens=0.0,
        encode_s=encode_s,
        encode_token_s=encode_token_s,
        decode_s=decode_s,
        decode_pixel_s=decode_pixel_s,
    )


def _line(calls: tuple[int, int], sizes: tuple[int, ...], measure: Callable[[int], float]) -> tuple[float, float]:
    """Seconds of a call, and per size on top, from a small call and a larger one. The first call does not count."""
    measure(calls[0])
    small, large = (statistics.median(measure(call) for _ in range(REPEATS)) for call in calls)
    if sizes[1] <= sizes[0]:
        return small, 0.0
    slope = max(0.0, (large - small) / (sizes[1] - sizes[0]))
    return max(small - slope * sizes[0], 0.1 * small), slope


def _timed(model: LoadedModel, call: Callable[[], object]) -> float:
    synchronize(model.device)
    began = time.perf_counter()
    call()
    synchronize(model.device)
    return time.perf_counter() - began
