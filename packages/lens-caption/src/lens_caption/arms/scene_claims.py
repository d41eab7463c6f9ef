"""What a caption of a procedural scene claims, also one from which colours, sizes or sentences were taken.

A claim is that there is an object of such a colour, shape, size or place, as far as they are said. Kinds differ within
a scene, so two mentions of one colour and shape are of one object; "the" speaks of an object again if an earlier claim
fits. What cannot be told from another object ("the circle", of two) claims nothing new.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from lens_core.datasets.scenes.world import BACKGROUNDS, COLOURS, QUADRANTS, SHAPES, SIZES

__all__ = ["ObjectClaim", "SceneClaims", "read_claims"]


@dataclass(frozen=True)
class ObjectClaim:
    """There is such an object; None is not said."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    quadrant: str | None = None

    def fits(self, other: ObjectClaim) -> bool:
        """Whether both may be of one object."""
        return all(a is None or b is None or a == b for a, b in zip(self._facts, other._facts, strict=True))

    def joined(self, other: ObjectClaim) -> ObjectClaim:
        """What both say of one object."""
        return ObjectClaim(*(a or b for a, b in zip(self._facts, other._facts, strict=True)))

    @property
    def same_kind(self) -> tuple[str, str] | None:
        """Colour and shape where both are said: no two objects of a scene share them."""
        return (self.colour, self.shape) if self.colour and self.shape else None

    @property
    def _facts(self) -> tuple[str | None, ...]:
        return self.colour, self.shape, self.size, self.quadrant


@dataclass(frozen=True)
class SceneClaims:
    """All of a caption: different objects, how many there are, the background, and relations between the objects.

    `relations` are (index of an object, "left of", index of another). `contradictory`: one object is said to be two
    things at once.
    """

    objects: tuple[ObjectClaim, ...] = ()
    count: int | None = None
    background: str | None = None
    relations: tuple[tuple[int, str, int], ...] = ()
    contradictory: bool = False


def _any(words: list[str]) -> str:
    return "|".join(map(re.escape, words))


_NUMBERS = {"one": 1, "two": 2, "three": 3}
_COUNT = re.compile(rf"\b(?P<number>{_any(list(_NUMBERS))})\s+objects?\b")
_BACKGROUND = re.compile(
    rf"\bon\s+(?:a\s+)?(?P<plain>{_any(list(BACKGROUNDS))})\b|\b(?P<named>{_any(list(BACKGROUNDS))})\s+background"
)
_OBJECT = re.compile(
    rf"(?:(?P<before>{_any(list(QUADRANTS))}):\s+)?(?:\b(?P<article>a|the)\s+)?"
    rf"(?:\b(?P<size>{_any(list(SIZES))})\s+)?(?:\b(?P<colour>{_any(list(COLOURS))})\s+)?"
    rf"\b(?P<noun>{_any(list(SHAPES))}|shape)\b(?:\s+in\s+the\s+(?P<place>{_any(list(QUADRANTS))}))?"
)
_RELATION = re.compile(r"\s+is\s+(left of|right of|above|below)\s+")


def read_claims(text: str) -> SceneClaims:
    """What a caption in the words of `lens_core.datasets.scenes.language` claims; of other words nothing is read."""
    text = text.lower()
    mentions = list(_OBJECT.finditer(text))
    said = [_claim(match) for match in mentions]
    again = [match["article"] == "the" for match in mentions]
    objects: list[ObjectClaim] = []
    index: dict[int, int | None] = {}
    contradictory = False
    # Objects first, then what speaks of them again, which a shuffled caption may do before.
    for number in sorted(range(len(said)), key=lambda number: again[number]):
        claim = said[number]
        kin = [i for i, other in enumerate(objects) if claim.same_kind and claim.same_kind == other.same_kind]
        known = kin or ([i for i, other in enumerate(objects) if claim.fits(other)] if again[number] else [])
        if not known:
            index[number] = len(objects)
            objects.append(claim)
        elif len(known) > 1:
            index[number] = None
        else:
            (at,) = known
            contradictory |= not claim.fits(objects[at])
            objects[at] = claim.joined(objects[at])
            index[number] = at
    relations = []
    for a, b in itertools.pairwise(range(len(mentions))):
        words = _RELATION.fullmatch(text, mentions[a].end(), mentions[b].start())
        first, second = index[a], index[b]
        if words and first is not None and second is not None and first != second:
            relations.append((first, words[1], second))
    count, ground = _COUNT.search(text), _BACKGROUND.search(text)
    return SceneClaims(
        objects=tuple(objects),
        count=_NUMBERS[count["number"]] if count else None,
        background=(ground["plain"] or ground["named"]) if ground else None,
        relations=tuple(dict.fromkeys(relations)),
        contradictory=contradictory,
    )


def _claim(match: re.Match[str]) -> ObjectClaim:
    shape = None if match["noun"] == "shape" else match["noun"]
    return ObjectClaim(match["colour"], shape, match["size"], match["place"] or match["before"])
