"""Scenes in words, in three styles, and short prompts back into what they say.

* alt-text: what the web writes: one object, or nothing useful
* brief: every object with colour and shape, and no more
* dense: the count, the background, each object's size, colour, shape and place, and how two of them relate

A dense caption says all there is to say: the scene can be redrawn from it. Wording and order vary by lot.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from typing import TYPE_CHECKING, Literal, TypeVar

from lens_core.datasets.scenes.world import BACKGROUNDS, COLOURS, QUADRANTS, SHAPES, Scene, SceneObject, relation

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LANGUAGE_VERSION", "STYLES", "Style", "describe", "parse_prompt"]

LANGUAGE_VERSION = 1
"""Goes into every caption's provenance; changes whenever the wording does."""

T = TypeVar("T")
Style = Literal["alt-text", "brief", "dense"]
STYLES: tuple[Style, ...] = ("alt-text", "brief", "dense")

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ALT = ("colourful shapes", "an abstract picture", "geometric art", "simple shapes")


def describe(scene: Scene, style: Style, *, seed: int = 0, key: str = "") -> str:
    """The scene in words; the same words for the same seed and key."""
    digest = hashlib.sha256(f"{seed}:{style}:{key}".encode()).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    return {"alt-text": _alt_text, "brief": _brief, "dense": _dense}[style](scene, rng)


def parse_prompt(text: str) -> tuple[list[dict[str, str]], str | None, list[tuple[int, str, int]]]:
    """What a prompt says of a scene.

    Returns:
        objects in the order of mention (colour, shape, and size and quadrant where said), the background where said,
        and relations as (index, "left of", index).
    """
    words = text.lower().replace("gray", "grey")
    objects: list[dict[str, str]] = []
    mentions: list[tuple[list[int], int, int]] = []  # which objects, and where in the text
    for match in _OBJECT.finditer(words):
        said = {"colour": match["colour"], "shape": _SINGULAR[match["shape"]]}
        place = match["place"] or match["before"]
        if match["size"]:
            said["size"] = _SIZE_WORDS[match["size"]]
        if place:
            said["quadrant"] = place.replace("top", "upper").replace("bottom", "lower").replace("-", " ")
        known = [
            i for i, item in enumerate(objects) if (item["colour"], item["shape"]) == (said["colour"], said["shape"])
        ]
        if match["article"] == "the" and known:  # it speaks of an object again
            objects[known[0]] |= said
            mentions.append((known[:1], *match.span()))
            continue
        first = len(objects)
        objects += [dict(said) for _ in range(_count(match["number"], match["shape"]))]
        mentions.append((list(range(first, len(objects))), *match.span()))
    relations = []
    for (these, _, end), (those, start, _) in itertools.pairwise(mentions):
        found = _RELATION.fullmatch(words[end:start].strip())
        if found:
            relations += [(a, _RELATION_WORDS[found["relation"]], b) for a in these for b in those if a != b]
    background = _BACKGROUND.search(words)
    return objects, (background["plain"] or background["named"]) if background else None, relations


def _alt_text(scene: Scene, rng: random.Random) -> str:
    if rng.random() < 0.3:
        return _one_of(_ALT, rng)
    item = _one_of(scene.objects, rng)
    return _one_of(
        (f"{item.colour} {item.shape}", f"a {item.shape}", f"{item.colour} shape", f"a {item.colour} {item.shape}"), rng
    )


def _brief(scene: Scene, rng: random.Random) -> str:
    return " and ".join(f"a {item.colour} {item.shape}" for item in _shuffled(scene.objects, rng))


def _dense(scene: Scene, rng: random.Random) -> str:
    objects = _shuffled(scene.objects, rng)
    count = _NUMBERS[len(objects)]
    noun = "object" if len(objects) == 1 else "objects"
    verb = "is" if len(objects) == 1 else "are"
    plain = scene.background
    opening = _one_of(
        (
            f"there {verb} {count} {noun} on a {plain} background.",
            f"{plain} background, {count} {noun}.",
            f"{count} {noun} on {plain}.",
        ),
        rng,
    )
    details = []
    for item in objects:
        name = f"{item.size} {item.colour} {item.shape}"
        details.append(_one_of((f"a {name} in the {item.quadrant}.", f"{item.quadrant}: {name}."), rng))
    # Relations of neighbours in the telling: the others follow from the places. "The red circle" must mean one.
    kinds = [(item.colour, item.shape) for item in objects]
    for a, b in itertools.pairwise(objects):
        if kinds.count((a.colour, a.shape)) == kinds.count((b.colour, b.shape)) == 1:
            details.append(f"the {a.colour} {a.shape} is {relation(a, b)} the {b.colour} {b.shape}.")
    return " ".join([opening, *details]) if rng.random() < 0.7 else " ".join([*details, opening])


def _count(number: str | None, shape: str) -> int:
    """How many objects a prompt asks for; a plural without a number means two."""
    if number is None:
        return 1 if shape in SHAPES else 2
    count = _NUMBERS.index(number) if number in _NUMBERS else int(number[:4])
    return min(count, len(QUADRANTS) + 1)  # however many they are, they are more than a scene holds


def _one_of(options: Sequence[T], rng: random.Random) -> T:
    return options[int(rng.random() * len(options))]


def _shuffled(items: Sequence[SceneObject], rng: random.Random) -> list[SceneObject]:
    return [item for _, item in sorted((rng.random(), item) for item in items)]


def _words(options: Sequence[str]) -> str:
    return "|".join(map(re.escape, options))


_SINGULAR = {form: shape for shape in SHAPES for form in (shape, f"{shape}s", f"{shape}es")}
_SIZE_WORDS = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large", "huge": "large"}
_RELATION_WORDS = {
    "left of": "left of",
    "right of": "right of",
    "above": "above",
    "over": "above",
    "on top of": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
}
_PLACES = [
    *QUADRANTS,
    *(f"{v}{dash}{h}" for v in ("top", "bottom", "upper", "lower") for h in ("left", "right") for dash in " -"),
]
_OBJECT = re.compile(
    rf"(?:(?P<before>{_words(_PLACES)}):\s+)?"
    rf"\b(?:(?P<article>a|an|the)\s+)?(?:(?P<number>{_words(_NUMBERS)}|\d+)\s+)?"
    rf"(?:(?P<size>{_words(list(_SIZE_WORDS))}),?\s+)?"
    rf"(?P<colour>{_words(list(COLOURS))})\s+(?P<shape>{_words(sorted(_SINGULAR, key=len, reverse=True))})\b"
    rf"(?:(?:\s+is)?,?\s+(?:in|at|on)\s+the\s+(?P<place>{_words(_PLACES)}))?"
)
_BACKGROUND = re.compile(
    rf"\b(?:on|against|over)\s+(?:a\s+)?(?:plain\s+)?(?P<plain>{_words(list(BACKGROUNDS))})\b"
    rf"|(?P<named>{_words(list(BACKGROUNDS))})\s+background"
)
_RELATION = re.compile(
    rf"(?:(?:is|are)\s+)?(?:(?:to|on)\s+the\s+)?(?P<relation>{_words(sorted(_RELATION_WORDS, key=len, reverse=True))})"
)
