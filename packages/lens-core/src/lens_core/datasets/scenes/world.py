"""What a scene is, and how scenes are drawn by lot: pure Python, the same on every machine.

A scene has one to three objects, each in a quadrant of its own, on a plain background. Its *composition* is the
multiset of its objects' colours and shapes, say {red circle, blue cross}. A fifth of all compositions is held out by a
hash: training never sees them in any arrangement, so prompts for them ask for something new.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELD_OUT",
    "JITTER",
    "MAX_OBJECTS",
    "QUADRANTS",
    "SHAPES",
    "SIZES",
    "Scene",
    "SceneObject",
    "Split",
    "is_held_out",
    "relation",
    "sample_scene",
]

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (222, 45, 45),
    "green": (45, 165, 70),
    "blue": (50, 85, 225),
    "yellow": (240, 205, 50),
    "purple": (150, 60, 190),
    "cyan": (60, 205, 215),
}
BACKGROUNDS = {"white": (246, 246, 246), "grey": (150, 150, 150), "black": (24, 24, 24), "pink": (248, 190, 205)}
SIZES = {"small": 4 / 32, "large": 6.4 / 32}
"""Radius as a share of the image's side."""

QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
JITTER = 5
"""Objects sit up to this many 128ths of the image's side off their quadrant's middle."""

MAX_OBJECTS = 3
HELD_OUT = 0.2
# With this salt six of the 24 single objects are held out: one of each colour, and all four shapes among them.
_SALT = "lens scenes 796"

Split = Literal["train", "held-out", "all"]


@dataclass(frozen=True, kw_only=True, order=True)
class SceneObject:
    """A shape. `dx` and `dy` are its offset from the quadrant's middle, in 128ths of the image's side."""

    colour: str
    shape: str
    size: str
    quadrant: str
    dx: int = 0
    dy: int = 0

    @property
    def column(self) -> int:
        """0 left, 1 right."""
        return QUADRANTS.index(self.quadrant) % 2

    @property
    def row(self) -> int:
        """0 upper, 1 lower."""
        return QUADRANTS.index(self.quadrant) // 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene graph."""

    background: str
    objects: tuple[SceneObject, ...]

    @property
    def composition(self) -> tuple[tuple[str, str], ...]:
        """The multiset of (colour, shape), sorted."""
        return tuple(sorted((item.colour, item.shape) for item in self.objects))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"background": self.background, "objects": [asdict(item) for item in self.objects]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scene:
        """The scene of plain data.

        Raises:
            ValueError: it is not a scene of this world.
        """
        try:
            scene = cls(background=data["background"], objects=tuple(SceneObject(**item) for item in data["objects"]))
            fine = scene.background in BACKGROUNDS and all(
                item.colour in COLOURS
                and item.shape in SHAPES
                and item.size in SIZES
                and item.quadrant in QUADRANTS
                and max(abs(item.dx), abs(item.dy)) <= JITTER
                for item in scene.objects
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a scene: {error}") from error
        if not fine:
            raise ValueError("not a scene: a colour, shape, size, place or background of another world")
        if not 1 <= len(scene.objects) == len({item.quadrant for item in scene.objects}):
            raise ValueError("not a scene: it has no object, or two in one place")
        return scene


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's composition is kept for evaluation."""
    text = _SALT + ":" + ",".join(f"{colour} {shape}" for colour, shape in scene.composition)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < HELD_OUT * 2**64


def sample_scene(seed: int, index: int, *, split: Split = "all", num_objects: int | None = None) -> Scene:
    """The scene of that number: independent of all others, the same for the same seed.

    Args:
        seed: of the world.
        index: number of the scene.
        split: which compositions may come up.
        num_objects: 1 to 3; None draws it.
    """
    digest = hashlib.sha256(f"{seed}:{index}:{split}:{num_objects}".encode()).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    while True:
        scene = _draw(rng, num_objects)
        if split == "all" or is_held_out(scene) == (split == "held-out"):
            return scene


def relation(first: SceneObject, second: SceneObject) -> str:
    """Where the first object is, seen from the second: "left of", "right of", "above" or "below"."""
    if first.column != second.column:
        return "left of" if first.column < second.column else "right of"
    return "above" if first.row < second.row else "below"


def _draw(rng: random.Random, num_objects: int | None) -> Scene:
    # Only `random()` is promised to give the same numbers in every version of Python, so everything is built on it.
    def pick(options: list[Any]) -> Any:
        return options.pop(int(rng.random() * len(options)))

    count = num_objects or 1 + int(rng.random() * MAX_OBJECTS)
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    quadrants = list(QUADRANTS)
    objects = []
    for _ in range(count):
        colour, shape = pick(kinds)
        objects.append(
            SceneObject(
                colour=colour,
                shape=shape,
                size=pick(list(SIZES)),
                quadrant=pick(quadrants),
                dx=int(rng.random() * (2 * JITTER + 1)) - JITTER,
                dy=int(rng.random() * (2 * JITTER + 1)) - JITTER,
            )
        )
    return Scene(background=pick(list(BACKGROUNDS)), objects=tuple(objects))
