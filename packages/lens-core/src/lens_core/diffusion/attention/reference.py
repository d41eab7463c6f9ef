"""Dense attention over segments of about one length together; runs everywhere, and is what the others are tested by.

Suffixes: R rows, A heads, P channels per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lens_core.diffusion.attention.plan import AttentionPlan, holes_of, places_of
from lens_core.diffusion.device import send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lens_core.diffusion.attention.backends import Heads

__all__ = ["MAX_WASTE", "GroupedPlan", "ReferenceAttention"]

MAX_WASTE = 1.6
"""Segments share a dense call while its score matrix is at most this much larger than theirs are without padding."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Segments that share a dense call, padded to `size` rows; `mask` [count, 1, 1, size] is True at real keys."""

    count: int
    size: int
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class GroupedPlan(AttentionPlan):
    """A layout in which the segments of a group lie together, each padded to the group's size."""

    groups: tuple[Group, ...]


class ReferenceAttention:
    """One call of PyTorch's attention per group."""

    def __init__(self) -> None:
        self._attend: Callable[[Sequence[Heads], AttentionPlan], Tensor] = _attend

    def plan(self, *lengths: Sequence[int], device: torch.device) -> GroupedPlan:
        """Sort the segments by length and cut them into groups."""
        joint = [sum(parts) for parts in zip(*lengths, strict=True)]
        order = sorted((g for g, size in enumerate(joint) if size), key=joint.__getitem__)
        groups, starts, row, first = [], [0] * len(joint), 0, 0
        for cut in _cuts([joint[g] for g in order]):
            members = order[first:cut]
            first, size = cut, joint[members[-1]]
            mask = None
            if joint[members[0]] < size:
                real = torch.arange(size) < torch.tensor([joint[g] for g in members])[:, None]
                mask = send(real.view(len(members), 1, 1, size), device)
            groups.append(Group(count=len(members), size=size, mask=mask))
            for member in members:
                starts[member] = row
                row += size
        if len(lengths) == 1 and (not groups or (len(groups) == 1 and groups[0].mask is None)):
            return GroupedPlan(rows=row, sections=(row,), places=None, holes=None, groups=tuple(groups))
        places = places_of(lengths, starts, torch.device("cpu"))
        holes = holes_of(places, row) if row > sum(joint) else None
        return GroupedPlan(
            rows=row,
            sections=tuple(group.count * group.size for group in groups) or (0,),
            places=tuple(send(place, device) for place in places),
            holes=None if holes is None else send(holes, device),
            groups=tuple(groups),
        )

    def __call__(self, sections: Sequence[Heads], plan: AttentionPlan) -> Tensor:
        """Attend, group by group."""
        return self._attend(sections, plan)

    def set_apart(self) -> None:
        """Be called by compiled code, not compiled with it: that would be done for every number of groups."""
        self._attend = torch.compiler.disable(_attend)


def _attend(sections: Sequence[Heads], plan: AttentionPlan) -> Tensor:
    assert isinstance(plan, GroupedPlan)
    if not plan.groups:
        return sections[0][2]  # which holds no token
    if len(sections) < len(plan.groups):  # by compiled code, which knows of no groups
        sections = list(zip(*(x.split(plan.sections) for x in sections[0]), strict=True))
    outputs = []
    for group, heads in zip(plan.groups, sections, strict=True):
        # [R, A, P] -> [count, A, size, P]
        q, k, v = (x.unflatten(0, (group.count, group.size)).transpose(1, 2) for x in heads)
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _cuts(sizes: list[int]) -> list[int]:
    """Where groups end in an ascending list of sizes."""
    cuts, first, exact = [], 0, 0
    for number, size in enumerate(sizes):
        if exact and (number + 1 - first) * size**2 > MAX_WASTE * (exact + size**2):
            cuts.append(number)
            first, exact = number, 0
        exact += size**2
    return [*cuts, len(sizes)] if sizes else []
