"""A pack becomes what a step computes on: tokens, noised; captions, as ids; and what the two will cost.

Suffixes: N image tokens, C channels, F features, G samples, B images of one size, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens_core.diffusion.ragged import offsets_of
from lens_train.loop.metrics import resolution
from lens_train.objective.flow import targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lens_core.contracts.diffusion import Autoencoder
    from lens_train.data.loader import LoadedPack
    from lens_train.data.text import Captions
    from lens_train.objective.config import ObjectiveConfig
    from lens_train.objective.terms import Term
    from lens_train.planning.manifest import Manifest
    from lens_train.watch.stopwatch import Stopwatch

__all__ = ["Batch", "assemble", "clean_tokens"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A ragged batch before its captions are encoded, and its target.

    Args:
        x_NC: noised image tokens.
        velocity_NC: the target.
        timestep_G: each sample's time.
        texts: each sample's caption, "" where it is dropped.
        ids: its tokens.
        image_offsets, text_offsets, grids: as in `RaggedBatch`.
        sides: each sample's resolution, as `resolution` names it.
        flops: of the denoiser, of a text encoder that is trained, and of the terms, forward and backward.
        goals: what the image tokens shall tell [N, F], by the name of the term that asks.
        blank: it stands for samples that could not be read, and does not count.
    """

    x_NC: Tensor
    velocity_NC: Tensor
    timestep_G: Tensor
    texts: list[str]
    ids: list[list[int]]
    image_offsets: Tensor
    text_offsets: Tensor
    grids: Tensor
    sides: list[int]
    flops: float
    goals: dict[str, Tensor] = field(default_factory=dict)
    blank: bool = False


def assemble(
    loaded: LoadedPack,
    *,
    manifest: Manifest,
    autoencoder: Autoencoder,
    captions: Captions,
    flops: Callable[[Sequence[int], Sequence[int]], float],
    objective: ObjectiveConfig,
    terms: Sequence[Term],
    seed: int,
    device: torch.device,
    stopwatch: Stopwatch,
) -> Batch:
    """What a pack is computed on; all of it follows from the pack and the seed."""
    samples, images = loaded.samples, loaded.images
    if not samples:  # sharded weights want all ranks in every pass: a blank image keeps this one in step
        samples = list(loaded.pack.samples[:1])
        images = [torch.zeros(samples[0].height, samples[0].width, 3, dtype=torch.uint8)]
    with stopwatch.part("encode"):
        tokens = clean_tokens(images, autoencoder, device)
        goals = {term.name: torch.cat(_each(images, term.goals, device)) for term in terms}
    goal = targets(objective, tokens, [(sample.epoch, manifest.key(sample.number)) for sample in samples], seed)
    texts = ["" if sample.caption is None else manifest.caption_text(sample.caption) for sample in samples]
    ids = captions.ids(texts)
    image_lengths, text_lengths = [len(one) for one in tokens], [len(one) for one in ids]
    stride = autoencoder.stride
    return Batch(
        x_NC=goal.x_NC,
        velocity_NC=goal.velocity_NC,
        timestep_G=goal.timestep_G,
        texts=texts,
        ids=ids,
        image_offsets=offsets_of(image_lengths),
        text_offsets=offsets_of(text_lengths),
        grids=torch.tensor([[sample.height // stride, sample.width // stride] for sample in samples]),
        sides=[resolution(sample.height, sample.width) for sample in samples],
        flops=flops(image_lengths, text_lengths) + sum(term.training_flops(sum(image_lengths)) for term in terms),
        goals=goals,
        blank=not loaded.samples,
    )


@torch.no_grad()
def clean_tokens(images: Sequence[Tensor], autoencoder: Autoencoder, device: torch.device) -> list[Tensor]:
    """Clean tokens [n, C] of each image, in float32."""
    if images[0].ndim == 2:  # made beforehand, by the stage `encode`
        return [image.to(device, torch.float32) for image in images]
    return _each(images, lambda pixels_B3HW: autoencoder.encode(pixels_B3HW / 127.5 - 1), device)


def _each(images: Sequence[Tensor], encode: Callable[[Tensor], Tensor], device: torch.device) -> list[Tensor]:
    """What is made of each image's pixels [B, 3, H, W], 0 to 255; images of one size are encoded together."""
    by_size: dict[torch.Size, list[int]] = {}
    for number, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(number)
    made: dict[int, Tensor] = {}
    for numbers in by_size.values():
        pixels_B3HW = torch.stack([images[n] for n in numbers]).permute(0, 3, 1, 2).to(device, torch.float32)
        made |= zip(numbers, encode(pixels_B3HW), strict=True)
    return [made[number] for number in range(len(images))]
