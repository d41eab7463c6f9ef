"""Whether a caption belongs to its image: servers have been seen to answer about another one, without an error.

`probe_binding` asks about canaries before a run. Canaries come in pairs: same size, same header, same first thousand
characters of base64, and other content, because caches have been keyed by less than the whole image. Each is asked
about alone and then all together, again and again; an answer that belongs to another canary has crossed.

`CanaryWatch` judges the captions of canaries that travel in a run.
"""

from __future__ import annotations

import io
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from lens_caption.quality.text import normal, resemblance, words
from lens_core.contracts import ImageItem
from lens_core.errors import LensError
from lens_core.storage.shards import image_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lens_core.contracts import CaptionOutcome

    Ask = Callable[[Sequence[ImageItem]], list[CaptionOutcome]]

__all__ = [
    "BindingError",
    "BindingReport",
    "CanaryWatch",
    "Crossing",
    "canary_pairs",
    "probe_binding",
]

CANARY_SIDE = 512
# Few, and far apart: a model that calls orange red must not be accused.
_COLOURS = {
    "red": (214, 30, 36),
    "green": (24, 140, 62),
    "blue": (32, 70, 205),
    "yellow": (250, 212, 30),
    "black": (16, 16, 16),
}
_SHAPES = ("circle", "square", "triangle", "cross")
_MAX_PAIRS = 6
_MIN_RESEMBLANCE = 0.1
_ALIKE = 0.3
"""A server whose answers about different canaries have so much in common keeps to one wording."""


class BindingError(LensError):
    """A server answers about other images than those it is asked about; nothing it says can be used."""


@dataclass(frozen=True)
class Canary:
    """A generated image whose answers are known to differ from its partner's."""

    item: ImageItem
    pair: int
    says: str
    """Colour and shape, such as "red circle"."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """An answer that belongs to another image."""

    asked: str
    answered: str
    text: str


@dataclass(frozen=True, kw_only=True)
class BindingReport:
    """What a probe found.

    Args:
        asked: requests.
        answered: captions among the answers.
        crossed: answers that belong to the partner.
        blind: pairs whose two images got the same answer when asked about one by one.
        statuses: how often each status came.
    """

    asked: int
    answered: int
    crossed: tuple[Crossing, ...]
    blind: tuple[str, ...]
    statuses: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every answer was about its own image, and there were answers."""
        return bool(self.answered) and not self.crossed and not self.blind

    def refuse(self, server: str) -> None:
        """Refuse a server whose answers cross.

        Raises:
            BindingError: captions crossed, or different images got one answer.
            LensError: there were too few answers to tell.
        """
        if self.crossed:
            first = self.crossed[0]
            raise BindingError(
                f"{server} answers about other images: {len(self.crossed)} of {self.answered} canaries crossed "
                f"(asked about a {first.asked}, it described a {first.answered}: {first.text[:80]!r}); do not caption "
                "with it: turn off its image and prefix caches, or update it"
            )
        if self.blind:
            raise BindingError(
                f"{server} gives different images one answer (a {self.blind[0]}); do not caption with it: it does not "
                "look at the images, or its cache mistakes one for another"
            )
        if 2 * self.answered < self.asked:
            raise LensError(f"{server} answered only {self.answered} of {self.asked} canaries: {self.statuses}")


def canary_pairs(count: int, *, seed: int, side: int = CANARY_SIDE) -> list[tuple[Canary, Canary]]:
    """Pairs of canaries: a square whose lower half has a colour, and in it a shape in the grey of the upper half.

    In a pair colour and shape differ. The upper half is the same in both, so that header and first rows give the same
    bytes. No two canaries have both colour and shape in common.

    Raises:
        ValueError: more than 6 pairs are asked for.
    """
    if not 0 < count <= _MAX_PAIRS:
        raise ValueError(f"1 to {_MAX_PAIRS} pairs, not {count}")
    rng = random.Random(f"canaries {seed}")
    left = [(colour, shape) for colour in _COLOURS for shape in _SHAPES]
    rng.shuffle(left)
    pairs = []
    for number in range(count):
        one = left.pop()
        # With half of them gone at most there is always one of another colour and another shape.
        other = next(found for found in left if found[0] != one[0] and found[1] != one[1])
        left.remove(other)
        level = rng.randrange(150, 220)
        first, second = (_canary(number, colour, shape, level, side) for colour, shape in (one, other))
        pairs.append((first, second))
    return pairs


def probe_binding(ask: Ask, *, pairs: int = 4, rounds: int = 4, seed: int = 0) -> BindingReport:
    """Ask about pairs of canaries, one by one and then all at once, and see whether the answers cross.

    Args:
        ask: sends images, as many at a time as it likes, and returns one outcome each in order: a captioner's
            `caption`. The more it has in flight, the sharper the probe.
        pairs: of canaries.
        rounds: how often all are sent at once.
        seed: of the canaries and of the order in which they are sent.
    """
    made = canary_pairs(pairs, seed=seed)
    flat = [canary for pair in made for canary in pair]
    statuses: dict[str, int] = {}

    def outcomes(canaries: Sequence[Canary]) -> list[str]:
        found = ask([canary.item for canary in canaries])
        for outcome in found:
            statuses[outcome.status] = statuses.get(outcome.status, 0) + 1
        return [outcome.text if outcome.status == "ok" else "" for outcome in found]

    alone = {canary.item.key: outcomes([canary])[0] for canary in flat}
    crossed = [
        Crossing(asked=canary.says, answered=partner.says, text=alone[canary.item.key])
        for pair in made
        for canary, partner in (pair, pair[::-1])
        if _evidence(alone[canary.item.key], canary, partner) < 0
    ]
    blind = [
        f"{a.says} and a {b.says}"
        for a, b in made
        if alone[a.item.key] and normal(alone[a.item.key]) == normal(alone[b.item.key])
    ]
    rng = random.Random(f"rounds {seed}")
    for _ in range(rounds):
        rng.shuffle(flat)
        texts = outcomes(flat)
        for canary, text in zip(flat, texts, strict=True):
            owner = _owner(text, canary, flat, alone)
            if owner is not canary:
                crossed.append(Crossing(asked=canary.says, answered=owner.says, text=text))
    return BindingReport(
        asked=sum(statuses.values()),
        answered=statuses.get("ok", 0),
        crossed=tuple(crossed),
        blind=tuple(blind),
        statuses=statuses,
    )


class CanaryWatch:
    """Tells whether the caption of a canary is its own, by what was said of each canary alone.

    Args:
        seed: of the canaries.
        pairs: of canaries.
    """

    def __init__(self, *, seed: int, pairs: int = 4):
        self.canaries = [canary for pair in canary_pairs(pairs, seed=seed) for canary in pair]
        self._alone: dict[str, str] = {}
        self._least = _MIN_RESEMBLANCE

    def learn(self, outcomes: Sequence[CaptionOutcome]) -> str | None:
        """Take in what a server says of each canary alone, in order; a reason if it must not be trusted, else None."""
        texts = [_text(outcome) for outcome in outcomes]
        self._alone = {canary.item.key: text for canary, text in zip(self.canaries, texts, strict=True)}
        # How much answers about different canaries have in common anyway: what resembles its own less is foreign.
        in_common = (resemblance(a, b) for a, b in itertools.combinations(filter(None, texts), 2))
        self._least = max(_MIN_RESEMBLANCE, 0.8 * min(in_common, default=0.0))
        for canary, other in itertools.permutations(self.canaries, 2):
            text, theirs = self._alone[canary.item.key], self._alone[other.item.key]
            if canary.pair == other.pair and text and normal(text) == normal(theirs):
                return f"a {canary.says} and a {other.says} got one answer: {text[:80]!r}"
            if canary.pair == other.pair and text and _evidence(text, canary, other) < 0:
                return f"asked about a {canary.says}, alone, the server said {text[:80]!r}"
        return None

    def complaint(self, number: int, outcome: CaptionOutcome) -> str | None:
        """The reason if the caption of a canary, by its number, is another image's; None if it is its own, or none."""
        canary, text = self.canaries[number], _text(outcome)
        owner = _owner(text, canary, self.canaries, self._alone)
        if owner is not canary or (text and self._is_foreign(text, canary)):
            return f"asked about a {canary.says}, the server said {text[:80]!r}"
        return None

    def _is_foreign(self, text: str, canary: Canary) -> bool:
        """Whether a text is about no canary at all, as far as words can tell."""
        own, says = self._alone[canary.item.key], set(canary.says.split())
        # A caption may name a canary's colour by chance; that counts where a server words all canaries differently.
        if not own or (says & set(words(text)) and self._least < _ALIKE):
            return False
        # A server that named the colour or shape before and now does not may still only have found other words.
        wanders = says & set(words(own)) and self._least < _ALIKE
        least = _MIN_RESEMBLANCE if wanders else self._least
        return resemblance(text, own) < least


def _owner(text: str, canary: Canary, canaries: Iterable[Canary], alone: dict[str, str]) -> Canary:
    """Whose answer it is: another canary's if it names that one's colour and shape, or has that one's very words."""
    own = alone[canary.item.key]
    if not text or not own or normal(text) == normal(own):
        return canary
    tokens = set(words(text))
    others = [other for other in canaries if other is not canary and alone[other.item.key]]
    named = [other for other in others if _evidence(text, canary, other) < 0]
    if named:
        return max(named, key=lambda other: len(tokens & set(other.says.split())))
    # Wording wanders from answer to answer: without a name, only the very words, or far more of them, count.
    closest = resemblance(text, own)
    unnamed = [other for other in others if _evidence(text, canary, other) == 0]
    same = [other for other in unnamed if normal(text) == normal(alone[other.item.key])]
    nearer = [other for other in unnamed if resemblance(text, alone[other.item.key]) > closest + 0.15]
    return max(same or nearer, key=lambda other: resemblance(text, alone[other.item.key]), default=canary)


def _evidence(text: str, canary: Canary, other: Canary) -> int:
    """1 if a text names what `canary` alone shows, -1 if it names all that `other` alone shows, else 0."""
    tokens = set(words(text))
    own, theirs = set(canary.says.split()), set(other.says.split())
    if tokens & (own - theirs):
        return 1
    return -1 if tokens >= theirs - own else 0


def _text(outcome: CaptionOutcome) -> str:
    return outcome.text if outcome.status == "ok" else ""


def _canary(pair: int, colour: str, shape: str, level: int, side: int) -> Canary:
    image = Image.new("RGB", (side, side), (level, level, level))
    draw = ImageDraw.Draw(image)
    # The colour has the larger part: servers that only average an image see it too.
    draw.rectangle((0, side // 2, side, side), fill=_COLOURS[colour])
    left, top, size = side * 5 // 16, side * 9 // 16, side * 3 // 8
    right, bottom, grey = left + size, top + size, (level, level, level)
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=grey)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), fill=grey)
    elif shape == "triangle":
        draw.polygon(((left + size // 2, top), (right, bottom), (left, bottom)), fill=grey)
    else:
        third = size // 3
        draw.rectangle((left + third, top, right - third, bottom), fill=grey)
        draw.rectangle((left, top + third, right, bottom - third), fill=grey)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    data = stream.getvalue()
    item = ImageItem(key=image_key(data), data=data, metadata={"canary": f"{colour} {shape}"})
    return Canary(item=item, pair=pair, says=f"{colour} {shape}")
