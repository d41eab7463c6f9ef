"""The loss of images that are never trained on, at fixed times with fixed noise: curves without the lots' own noise.

With T times each image is judged at t = (i + 1/2) / T, with its first caption, and with noise that hangs on its key and
i alone. Images count alike. Ranks share them, so the numbers do not depend on how many ranks there are.

val_loss       the mean over images and times
val_loss_t1…   the mean over images at each time, that with the least noise first

Suffixes: N image tokens of a batch, n of one image, C channels, T times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens_core.diffusion.counter_noise import noise
from lens_core.diffusion.ragged import offsets_of
from lens_core.errors import LensError
from lens_train.loop.batch import Batch, clean_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lens_train.data.training_set import TrainingSet
    from lens_train.loop.trainer import Trainer
    from lens_train.watch.config import ValidationConfig

__all__ = ["Validation"]


class Validation:
    """Watches the loss of what is held out.

    Args:
        trainer: whose model.
        held_out: the images.
        config: how often, and at how many times.
    """

    def __init__(self, trainer: Trainer, held_out: TrainingSet, config: ValidationConfig):
        self._trainer = trainer
        self._manifest = held_out.manifest
        self._source = held_out.source
        self._config = config
        self.every = config.every

    def look(self, step: int) -> dict[str, float]:
        """The losses, those of images that cannot be read left out.

        Raises:
            LensError: not one of them can be read.
        """
        world, count = self._trainer.world, len(self._manifest)
        sums = torch.zeros(self._config.times + 1, dtype=torch.float64)
        # Sharded weights want all ranks in every pass: who has no image left takes one that does not count.
        for first in range(0, count, world.size):
            number = first + world.rank
            image = self._source([number])[0] if number < count else ""
            losses_T = self.losses(min(number, count - 1), None if isinstance(image, str) else image)
            if not isinstance(image, str):
                sums += torch.cat([losses_T.cpu().double(), torch.ones(1)])
        *by_time, seen = world.sum_over(sums).tolist()
        if not seen:
            raise LensError(f"not one of the {count} images held out for validation can be read")
        told = {f"val_loss_t{place + 1}": total / seen for place, total in enumerate(by_time)}
        return {"val_loss": sum(told.values()) / len(told), **told}

    def losses(self, number: int, image: Tensor | None) -> Tensor:
        """The loss [T] of an image of the manifest at every time; None stands for one of its size that is empty."""
        trainer, manifest, times = self._trainer, self._manifest, self._config.times
        device, stride = trainer.world.device, trainer.autoencoder.stride
        grid = [int(manifest.height[number]) // stride, int(manifest.width[number]) // stride]
        if image is None:
            clean_nC = torch.zeros(grid[0] * grid[1], trainer.autoencoder.channels, device=device)
        else:
            (clean_nC,) = clean_tokens([image], trainer.autoencoder, device)
        timestep_T = ((torch.arange(times) + 0.5) / times).to(device)
        key = manifest.key(number)
        noise_NC = torch.cat([noise(trainer.seed, ("validation", key, i), clean_nC.shape) for i in range(times)])
        velocity_NC = noise_NC.to(device) - clean_nC.repeat(times, 1)
        text = manifest.caption_text(manifest.captions_of(number)[0])
        (ids,) = trainer.captions.ids([text])
        return trainer.sample_losses(
            Batch(
                x_NC=clean_nC.repeat(times, 1) + timestep_T.repeat_interleave(len(clean_nC))[:, None] * velocity_NC,
                velocity_NC=velocity_NC,
                timestep_G=timestep_T,
                texts=[text] * times,
                ids=[ids] * times,
                image_offsets=offsets_of([len(clean_nC)] * times),
                text_offsets=offsets_of([len(ids)] * times),
                grids=torch.tensor([grid] * times),
                sides=[],
                flops=0.0,
            )
        )

    def judge(self, seen: Mapping[str, float]) -> None:
        """See `Watcher`."""
        limit = self._config.limit
        if limit is not None and not seen["val_loss"] <= limit:
            raise LensError(
                f"val_loss is {seen['val_loss']:.4g} at the end, more than watch.validation.limit, {limit:g}"
            )
