"""A batch brought to a fixed number of tokens, so that every step has the same shapes and needs the same memory.

Suffixes: N image tokens, T text tokens, E text width.

What is missing becomes one more segment, of which nothing is asked: segments do not see each other, so the others'
results and gradients stay what they are. It is there even where nothing is missing: then it is empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lens_core.diffusion.ragged import RaggedBatch

__all__ = ["pad_to"]


def pad_to(batch: RaggedBatch, capacity: tuple[int, int]) -> RaggedBatch:
    """The batch with a segment of zeros after its own; the first N rows of the result are those of the batch.

    Args:
        batch: to be padded.
        capacity: image and text tokens of the result.

    Raises:
        ValueError: the batch is larger than that.
    """
    images, texts = len(batch.image), int(batch.text_offsets[-1])
    rows, columns = capacity[0] - images, capacity[1] - texts
    if rows < 0 or columns < 0:
        raise ValueError(f"{images} image and {texts} text tokens are more than {capacity[0]} and {capacity[1]}")
    grid = [[1, rows] if rows else [0, 0]]
    return RaggedBatch(
        image=_longer(batch.image, rows),
        text=[_longer(layer_TE, columns) for layer_TE in batch.text],
        image_offsets=_ending(batch.image_offsets, capacity[0]),
        text_offsets=_ending(batch.text_offsets, capacity[1]),
        grids=torch.cat([batch.grids, torch.tensor(grid, dtype=batch.grids.dtype)]),
        timestep=_longer(batch.timestep, 1),
    )


def _longer(tensor: Tensor, more: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])


def _ending(offsets: Tensor, end: int) -> Tensor:
    return torch.cat([offsets, torch.tensor([end], dtype=offsets.dtype)])
