"""The joint layout: a segment's tokens of all streams lie together, perhaps with rows between that hold none.

Suffixes: N, T tokens of a stream; R rows of the joint layout.

The denoiser's streams keep their tokens in buffers of their own. For attention they are written into one buffer of
rows, segment after segment, and afterwards read back. Each token has one row, so either way is a look-up, and each
is the other's transpose: no backward pass adds anything up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lens_core.diffusion.device import layout_device, send

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AttentionPlan", "holes_of", "places_of"]


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Where the tokens of each stream lie in the joint layout. Backends add what they need.

    Args:
        rows: rows R of the joint layout.
        sections: the rows of each call that the backend makes, in order; there is at least one.
        places: for each stream the row of each token [N]; None if the only stream is the layout as it lies.
        holes: the rows that hold no token, if there are any.
    """

    rows: int
    sections: tuple[int, ...]
    places: tuple[Tensor, ...] | None
    holes: Tensor | None

    def join(self, *streams: Tensor) -> Tensor:
        """Streams [N, …], [T, …] to rows [R, …], zero where no token lies."""
        return streams[0] if self.places is None else _Join.apply(self, *streams)

    def part(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows back to the streams: the transpose of `join`."""
        return (rows,) if self.places is None else _Part.apply(self, rows)

    def scatter(self, *streams: Tensor) -> Tensor:
        """`join` without a gradient."""
        if self.places is None:
            return streams[0]
        if torch.compiler.is_compiling():
            return self._look_up(streams)
        rows = self.blank(streams[0])
        for place, stream in zip(self.places, streams, strict=True):
            rows.index_copy_(0, place, stream)
        return rows

    def blank(self, like: Tensor) -> Tensor:
        """Rows [R, …] for streams to be written into: zero where no token lies, and whatever elsewhere."""
        rows = like.new_empty(self.rows, *like.shape[1:])
        return rows if self.holes is None else rows.index_fill_(0, self.holes, 0.0)

    def _look_up(self, streams: Sequence[Tensor]) -> Tensor:
        """`scatter` for a compiler, which fuses reading with what makes the tokens, and writing with nothing."""
        assert self.places is not None
        rows = streams[0].new_zeros(self.rows, *streams[0].shape[1:])
        for place, stream in zip(self.places, streams, strict=True):
            if len(place):
                number_N = torch.arange(len(place), device=place.device)
                token_R = place.new_full((self.rows,), -1).index_copy(0, place, number_N)
                found = stream.index_select(0, token_R.clamp(min=0))
                rows = torch.where((token_R >= 0).view(-1, *[1] * (found.ndim - 1)), found, rows)
        return rows

    def gather(self, rows: Tensor) -> tuple[Tensor, ...]:
        """`part` without a gradient."""
        return (rows,) if self.places is None else tuple(rows.index_select(0, place) for place in self.places)


def holes_of(places: Sequence[Tensor], rows: int) -> Tensor | None:
    """The rows, of so many, that no token has."""
    taken = torch.zeros(rows, dtype=torch.bool)
    for place in places:
        taken[place] = True
    return None if bool(taken.all()) else (~taken).nonzero()[:, 0]


def places_of(lengths: Sequence[Sequence[int]], starts: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    """For each stream the row of each token, where segment g begins at row `starts[g]`.

    A segment's rows hold its tokens of the first stream, then of the second.
    """
    made_on = layout_device(device)
    places, next_G = [], send(torch.tensor(starts), made_on)
    for stream in lengths:
        size_G, count = send(torch.tensor(stream), made_on), sum(stream)
        ahead_N = torch.repeat_interleave(next_G - (size_G.cumsum(0) - size_G), size_G, output_size=count)
        places.append((torch.arange(count, device=made_on) + ahead_N).to(device))
        next_G = next_G + size_G
    return tuple(places)


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: AttentionPlan, *streams: Tensor) -> Tensor:
        ctx.plan = plan
        return plan.scatter(*streams)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.plan.gather(grads[0])


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: AttentionPlan, rows: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        return plan.gather(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.plan.scatter(*grads)
