"""A denoiser of two blocks, and steps on the same four samples whatever the number of ranks."""

from __future__ import annotations

import torch

from lens_core.diffusion.models.lens.model import LensTransformer2DModel
from lens_core.diffusion.ragged import RaggedBatch, offsets_of
from lens_train.optim.build import Optimizers
from lens_train.optim.config import OptimizerConfig
from lens_train.optim.ema import Ema
from lens_train.parallel.config import ParallelConfig
from lens_train.parallel.shard import clip_gradients, shard, sync_gradients

SAMPLES = 4
CHANNELS, WIDTH = 6, 10


def denoiser(dtype=torch.float32, seed=0):
    """Nothing in it is zero, and its sizes (13 rows for some) do not divide evenly."""
    model = LensTransformer2DModel(
        patch_size=1,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        enc_hidden_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        selected_layer_index=(0,),
    )
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def samples(step, dtype):
    """(image, text, grid, timestep, goal) of each sample."""
    generator = torch.Generator().manual_seed(100 + step)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    made = []
    for number in range(SAMPLES):
        grid = (2 + number % 2, 3)
        tokens = grid[0] * grid[1]
        made.append((draw(tokens, CHANNELS), draw(number + 1, WIDTH), grid, draw().sigmoid(), draw(tokens, CHANNELS)))
    return made


def pack(chosen):
    """A ragged batch of samples, and what its output should be."""
    images, texts, grids, times, goals = zip(*chosen, strict=True)
    batch = RaggedBatch(
        image=torch.cat(images),
        text=[torch.cat(texts)],
        image_offsets=offsets_of([len(image) for image in images]),
        text_offsets=offsets_of([len(text) for text in texts]),
        grids=torch.tensor(grids),
        timestep=torch.stack(times),
    )
    return batch, torch.cat(goals)


def loss_of(model, batch, goal):
    """This rank's part of the mean over the step's samples."""
    errors = (model.forward_ragged(batch) - goal).square().mean(-1)
    return torch.stack([part.mean() for part in errors.split(batch.image_lengths)]).sum() / SAMPLES


class Run:
    """A training run, of this rank's share of the samples."""

    def __init__(self, world, *, dtype=torch.float32, optimizer="muon", seed=0, **parallel):
        self.world, self.dtype = world, dtype
        self.model = denoiser(dtype, seed)
        shard(self.model, world, ParallelConfig(**parallel))
        self.optimizers = Optimizers(OptimizerConfig(type=optimizer, weight_decay=0.1), [self.model])
        self.ema = Ema({"transformer": self.model}, 0.9)

    def backward(self, step, *, packs=1):
        """Gradients of one step, its share of samples in so many packs."""
        own = samples(step, self.dtype)[self.world.rank :: self.world.size]
        for number in range(packs):
            sync_gradients([self.model], number == packs - 1)
            loss_of(self.model, *pack(own[number::packs])).backward()

    def steps(self, first, last, *, packs=1):
        """Train; returns the gradients' norms."""
        norms = []
        for step in range(first, last):
            self.backward(step, packs=packs)
            norms.append(float(clip_gradients(list(self.model.parameters()), 1.0)))
            self.optimizers.step()
            self.optimizers.zero_grad()
            self.ema.update(step)
        return norms
