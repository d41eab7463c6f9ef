"""From prompts to pictures: the requests of a call may differ in size, prompt and seed, and share ragged batches.

Suffixes: N image tokens of a batch, T text tokens, C channels, G requests of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens_core.diffusion.counter_noise import noise
from lens_core.diffusion.guidance import guide
from lens_core.diffusion.prediction import to_velocity
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from lens_core.config.base import ComponentConfig
    from lens_core.diffusion.model_folder import LoadedModel

__all__ = ["Request", "generate"]

MAX_BATCH_TOKENS = 4096
"""Image and text tokens in one call of the denoiser, guidance's second branch not counted."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to draw. The same model, prompt, size, seed and index give the same picture.

    Args:
        prompt: what to draw.
        height: in pixels, a multiple of the model's stride.
        width: likewise.
        seed: of the noise.
        index: which of a seed's pictures.
        negative: what to steer away from.
    """

    prompt: str
    height: int
    width: int
    seed: int = 0
    index: int = 0
    negative: str = ""


@torch.inference_mode()
def generate(
    model: LoadedModel,
    requests: Sequence[Request],
    *,
    sampler: ComponentConfig | None = None,
    guidance: float | None = None,
    on_batch: Callable[[int], None] | None = None,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[np.ndarray]:
    """Draw pictures.

    Args:
        model: a loaded model folder.
        requests: what to draw; their results do not depend on each other.
        sampler: by default the model's own.
        guidance: by default the model's own; 1 does without the second branch.
        on_batch: called after each batch with the number of pictures done.
        max_batch_tokens: how much runs at once.

    Returns:
        uint8 [height, width, 3] each, in the order of the requests.

    Raises:
        ConfigError: a size that is not a multiple of the model's stride.
    """
    stride = model.autoencoder.stride
    for request in requests:
        if request.height % stride or request.width % stride or min(request.height, request.width) <= 0:
            raise ConfigError(f"a size of {request.width}x{request.height} is not a multiple of {stride} pixels")
    scale = model.guidance if guidance is None else guidance
    images: list[np.ndarray] = []
    for batch in _batches(requests, stride, max_batch_tokens):
        images += _draw(model, batch, sampler or model.sampler, scale)
        if on_batch:
            on_batch(len(images))
    return images


def _draw(
    model: LoadedModel, requests: list[Request], sampler_config: ComponentConfig, scale: float
) -> list[np.ndarray]:
    device = model.device
    stride, channels = model.autoencoder.stride, model.autoencoder.channels
    sampler = model.registry.build("samplers", sampler_config)
    grids = [(request.height // stride, request.width // stride) for request in requests]
    lengths = [h * w for h, w in grids]
    guided = scale != 1.0
    prompts = [request.prompt for request in requests] + [request.negative for request in requests if guided]
    ids = model.text_encoder.tokenize(prompts)
    text_offsets = offsets_of([len(one) for one in ids])
    ids_T = torch.tensor([token for one in ids for token in one], dtype=torch.long, device=device)
    text = model.text_encoder(ids_T, text_offsets)

    x_NC = torch.cat([noise(r.seed, r.index, (n, channels)) for r, n in zip(requests, lengths, strict=True)]).to(device)
    # Each request has its own time grid, because a grid may depend on the number of tokens.
    times_GS = torch.stack([sampler.times(n) for n in lengths])
    rows_N = torch.repeat_interleave(torch.tensor(lengths)).to(device)
    branches = 2 if guided else 1
    image_offsets, grids_G2 = offsets_of(lengths * branches), torch.tensor(grids * branches)

    def velocity(x_NC: Tensor, t_G: Tensor) -> Tensor:
        output = model.transformer.forward_ragged(
            RaggedBatch(
                image=torch.cat([x_NC] * branches),
                text=text,
                image_offsets=image_offsets,
                text_offsets=text_offsets,
                grids=grids_G2,
                timestep=t_G.repeat(branches),
            )
        )
        t_N1 = t_G[rows_N][:, None]
        parts = [to_velocity(model.prediction, part, x_NC, t_N1) for part in output.chunk(branches)]
        return guide(parts[0], parts[1], scale, rescale=model.guidance_rescale) if guided else parts[0]

    for t_G, next_G in zip(times_GS.T[:-1].to(device), times_GS.T[1:].to(device), strict=True):
        x_NC = sampler.step(x_NC, velocity(x_NC, t_G), t_G[rows_N][:, None], next_G[rows_N][:, None])
    return _decode(model, x_NC, grids)


def _decode(model: LoadedModel, x_NC: Tensor, grids: list[tuple[int, int]]) -> list[np.ndarray]:
    """Tokens to pictures, equal sizes together."""
    tokens = x_NC.split([h * w for h, w in grids])
    images: dict[int, np.ndarray] = {}
    for grid in dict.fromkeys(grids):
        which = [i for i, other in enumerate(grids) if other == grid]
        pixels_BCHW = model.autoencoder.decode(torch.stack([tokens[i] for i in which]), grid)
        bytes_BHWC = ((pixels_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        for i, image in zip(which, bytes_BHWC.cpu().numpy(), strict=True):
            images[i] = image
    return [images[i] for i in range(len(grids))]


def _batches(requests: Sequence[Request], stride: int, max_tokens: int) -> Iterator[list[Request]]:
    batch: list[Request] = []
    tokens = 0
    for request in requests:
        # A word is about one token; a generous guess only moves where a batch is cut.
        size = (request.height // stride) * (request.width // stride) + len(request.prompt.split())
        if batch and tokens + size > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(request)
        tokens += size
    if batch:
        yield batch
