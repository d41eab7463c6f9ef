"""The ragged batch: images and prompts of any size in one flat buffer each, without padding.

Suffixes: N image tokens of all segments, T text tokens of all segments, C token channels, E text width, G segments.

A training batch mixes resolutions and caption lengths; a server's running requests mix resolutions, prompts and
timesteps. Both are this object. Linears and norms run over the flat buffers; only attention looks at segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["RaggedBatch", "offsets_of"]


def offsets_of(lengths: Sequence[int]) -> Tensor:
    """Where each segment begins, and where the last ends: int32 [G+1]."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


@dataclass(frozen=True, kw_only=True)
class RaggedBatch:
    """What a denoiser works on.

    Offsets and grids live on the CPU: they are the plan of the batch, read by Python, not data of it.

    Args:
        image: image tokens [N, C], each segment's in row-major order of its grid.
        text: text features, one tensor [T, E] per layer of the encoder.
        image_offsets: int32 [G+1]; segment g's image tokens are `image[image_offsets[g]:image_offsets[g+1]]`.
        text_offsets: int32 [G+1], likewise for text; an empty span is the unconditional branch.
        grids: [G, 2], height and width of each segment in tokens.
        timestep: [G] in [0, 1]; 1 is pure noise.
        derived: what a model made of the layout (everything but `image`, `text` and `timestep`), for its own use.
    """

    image: Tensor
    text: list[Tensor]
    image_offsets: Tensor
    text_offsets: Tensor
    grids: Tensor
    timestep: Tensor
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        segments = len(self.grids)
        if self.image_offsets.shape != (segments + 1,) or self.text_offsets.shape != (segments + 1,):
            raise ValueError(f"{segments} grids need offsets of length {segments + 1}")
        if self.timestep.shape != (segments,):
            raise ValueError(f"{segments} segments need as many timesteps, not {tuple(self.timestep.shape)}")
        if self.grids.prod(-1).tolist() != self.image_offsets.diff().tolist():
            raise ValueError("a segment's image tokens must fill its grid")
        if len(self.image) != int(self.image_offsets[-1]):
            raise ValueError("image_offsets must cover the image tokens exactly")
        if any(len(layer) != int(self.text_offsets[-1]) for layer in self.text):
            raise ValueError("text_offsets must cover the text features exactly")

    def at(self, image: Tensor, timestep: Tensor) -> RaggedBatch:
        """Another moment of the same segments: the layout, and what was derived from it, stay."""
        moment = replace(self, image=image, timestep=timestep)
        object.__setattr__(moment, "derived", self.derived)  # one for all moments, whichever comes first
        return moment

    @property
    def image_lengths(self) -> list[int]:
        """Image tokens of each segment."""
        return self.image_offsets.diff().tolist()

    @property
    def text_lengths(self) -> list[int]:
        """Text tokens of each segment."""
        return self.text_offsets.diff().tolist()
