"""The model in training as one that draws: the same modules, lent for a while.

All ranks draw the same pictures together. Sharded weights are then gathered block by block as in training, so that no
rank ever holds the whole model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lens_core.diffusion.loaded_model import LoadedModel
from lens_core.diffusion.text_to_image import generate

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from lens_core.diffusion.text_to_image import Request
    from lens_core.registry import Registry
    from lens_train.parallel.world import World
    from lens_train.stages.train.parts import Parts

__all__ = ["Drawer"]


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
        """uint8 [height, width, 3] of each request; all ranks must call this."""
        bf16 = self._dtype == torch.bfloat16
        with torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=bf16):
            return generate(self._model, requests)
