"""The model in training as one that draws: the same modules, lent for a while.

Pictures are drawn a few at a time, and ranks share these batches. Which pictures make a batch does not depend on how
many ranks there are, so neither does a single bit of them. Sharded weights are gathered block by block as in training:
no rank ever holds the whole model, and all must call the denoiser equally often.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from lens_core.diffusion.loaded_model import LoadedModel
from lens_core.diffusion.text_to_image import MAX_BATCH_TOKENS, encode, generate

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from lens_core.diffusion.text_to_image import Request
    from lens_core.registry import Registry
    from lens_train.parallel.world import World
    from lens_train.stages.train.parts import Parts

__all__ = ["PICTURES", "Drawer"]

PICTURES = 16
"""How many are drawn together at most: so few that several ranks find something to do."""


class Drawer:
    """Draws with what is being trained.

    Args:
        parts: of the model, placed; its sampler and guidance are used.
        world: who draws.
        dtype: what is computed in.
        image_size: (height, width) of pictures that do not say theirs.
        registry: where the sampler comes from.
    """

    def __init__(
        self, parts: Parts, world: World, *, dtype: torch.dtype, image_size: tuple[int, int], registry: Registry
    ):
        self.image_size = parts.image_size or image_size
        self.world = world
        self._dtype = dtype
        self._model = LoadedModel(
            transformer=parts.transformer,
            text_encoder=parts.text_encoder,
            autoencoder=parts.autoencoder,
            sampler=parts.sampler,
            prediction=parts.prediction,
            image_size=self.image_size,
            guidance=parts.guidance,
            guidance_rescale=parts.guidance_rescale,
            registry=registry,
        )
        self._model.device = world.device

    def __call__(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """uint8 [height, width, 3] of each request, on all ranks; all must call this."""
        bf16, batches, ranks = self._dtype == torch.bfloat16, self._batches(requests), self.world.size
        images: list[np.ndarray] = []
        with torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=bf16):
            for first in range(0, len(batches), ranks):
                images += self._round(batches[first : first + ranks])
        return images

    def _batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        """The requests in order, cut by their number and by their image tokens."""
        batches: list[list[Request]] = []
        room = 0
        for request in requests:
            height, width = request.grid(self._model.autoencoder.stride)
            room -= height * width
            if room < 0 or len(batches[-1]) == PICTURES:
                batches.append([])
                room = MAX_BATCH_TOKENS - height * width
            batches[-1].append(request)
        return batches

    def _round(self, batches: list[list[Request]]) -> list[np.ndarray]:
        """The pictures of at most one batch for each rank."""
        # Prompts are encoded by all ranks: how often an encoder is called hangs on them, and they cost little.
        encoded = [encode(self._model, batch) for batch in batches]
        # Who has no batch left draws another's.
        own = generate(self._model, encoded[self.world.rank % len(batches)], max_batch_tokens=sys.maxsize)
        if self.world.size == 1:
            return own
        parts = [torch.zeros(sum(_size(request) for request in batch), dtype=torch.uint8) for batch in batches]
        if self.world.rank < len(batches):
            parts[self.world.rank] = torch.cat([torch.from_numpy(image).flatten() for image in own])
        together = [request for batch in batches for request in batch]
        pixels = self.world.sum_over(torch.cat(parts)).split([_size(request) for request in together])
        return [
            flat.view(request.height, request.width, 3).numpy() for flat, request in zip(pixels, together, strict=True)
        ]


def _size(request: Request) -> int:
    return 3 * request.height * request.width
