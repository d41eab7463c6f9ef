"""What a plan is: packs of samples by number, without end and without a state.

A pack is what one rank works on at a time. Pack k is a pure function of (manifest, seed, settings, k): it does not
depend on how many ranks there are, so W ranks take packs k … k+W-1, and after a change of W nothing is repeated or
lost. To resume is to know one integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lens_core.errors import ConfigError

__all__ = ["Pack", "Plan", "PlannedSample", "packs_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSample:
    """One image's turn in one epoch.

    Args:
        number: row of the manifest.
        epoch: counted from 0.
        caption: row of the manifest's captions; None where it is dropped, or there is none.
        height: in pixels, as trained on.
        width: likewise.
        image_tokens: of the image.
        text_tokens: of the caption, 0 without one.
    """

    number: int
    epoch: int
    caption: int | None
    height: int
    width: int
    image_tokens: int
    text_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """What one rank works on at a time.

    Args:
        index: its number in the endless sequence.
        samples: in the order of the buffers.
        flops: what training on them costs.
    """

    index: int
    samples: tuple[PlannedSample, ...]
    flops: float

    @property
    def image_tokens(self) -> int:
        """Of all samples."""
        return sum(sample.image_tokens for sample in self.samples)

    @property
    def text_tokens(self) -> int:
        """Of all samples."""
        return sum(sample.text_tokens for sample in self.samples)


class Plan(Protocol):
    """The packs of a training run."""

    @property
    def packs_per_epoch(self) -> int:
        """Every sample occurs once in packs 0 … packs_per_epoch - 1, once in as many packs after those, and so on."""

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that the packs follow from; a run goes on only with the plan it began with."""

    @property
    def capacity(self) -> tuple[int, int] | None:
        """Image and text tokens that buffers of fixed size hold; None where packs differ too much for that."""

    def pack(self, index: int) -> Pack:
        """Any pack, at the same price: nothing before it is computed."""


def packs_of(step: int, rank: int, world: int, packs_per_step: int) -> range:
    """The packs that a rank works on in a step, one after the other.

    Raises:
        ConfigError: the ranks cannot share the packs evenly.
    """
    if packs_per_step % world:
        raise ConfigError(
            f"{world} ranks cannot share {packs_per_step} packs per step evenly; "
            f"set packs_per_step to a multiple of {world}, such as {-(-packs_per_step // world) * world}",
            key="packs_per_step",
        )
    first = step * packs_per_step
    return range(first + rank, first + packs_per_step, world)
