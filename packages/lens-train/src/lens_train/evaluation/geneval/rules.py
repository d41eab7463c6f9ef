"""GenEval's rules: what a picture must show, given what was detected in it.

Only the surest detections of a class are looked at, as many as were asked for. A place is told from the centres of two
boxes: the offset along an axis counts once it is more than a tenth of the boxes' sizes along it together, less that
tenth, and names the place if it is then more than half of the centres' distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lens_train.evaluation.geneval.prompts import Colour, GenevalPrompt, Relation

__all__ = ["Box", "Detection", "does", "relations"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

_SLACK = 0.1
_DOMINANT = 0.5


@dataclass(frozen=True)
class Detection:
    """An object in a picture, and how sure the detector is of it."""

    box: Box
    confidence: float


def does(
    prompt: GenevalPrompt,
    found: Mapping[str, Sequence[Detection]],
    colours_of: Callable[[str, Sequence[Box]], Sequence[Colour]],
) -> bool:
    """Whether a picture does what the prompt asks.

    Args:
        prompt: what is asked.
        found: the detections of each class, the surest first.
        colours_of: the colour of each box, given the class of what is in it.
    """
    groups: list[Sequence[Detection]] = []
    for wanted in prompt.include:
        group = found.get(wanted.name, ())[: wanted.count]
        if len(group) < wanted.count:
            return False
        boxes = [one.box for one in group]
        if wanted.colour and any(colour != wanted.colour for colour in colours_of(wanted.name, boxes)):
            return False
        if wanted.position:
            relation, other = wanted.position
            if any(relation not in relations(box, target.box) for box in boxes for target in groups[other]):
                return False
        groups.append(group)
    return all(len(found.get(unwanted.name, ())) < unwanted.count for unwanted in prompt.exclude)


def relations(box: Box, other: Box) -> frozenset[Relation]:
    """Where a box is, seen from another one: none, one, or two that hold at once."""
    across = _excess(box[0], box[2], other[0], other[2])
    down = _excess(box[1], box[3], other[1], other[3])
    distance = math.dist(_centre(box), _centre(other))
    excess: dict[Relation, float] = {"left of": -across, "right of": across, "above": -down, "below": down}
    return frozenset(name for name, much in excess.items() if much > _DOMINANT * distance)


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _excess(low: float, high: float, other_low: float, other_high: float) -> float:
    """By how much two centres differ along an axis beyond the slack, with its sign."""
    offset = (low + high - other_low - other_high) / 2
    slack = _SLACK * (high - low + other_high - other_low)
    return math.copysign(max(abs(offset) - slack, 0.0), offset)
