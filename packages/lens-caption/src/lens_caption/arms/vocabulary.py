"""Words for attributes, class by class: what a caption states, and what could stand there instead.

An attribute has a phrase, which is one statement ("on the left side", "dark red"), and *families* of words within it. A
family has groups: the words of one group mean the same ("big", "large"), those of two groups exclude each other. So a
word of another group of its family makes a statement wrong, and never says the same again.

These are lists of words and no parser. They are short on purpose, and leave out what is often something else ("gold",
"an olive"): what they find is nearly always an attribute, and not all attributes are found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from lens_core.datasets.scenes.world import BACKGROUNDS, COLOURS, QUADRANTS, SHAPES, SIZES

__all__ = ["CLASSES", "VOCABULARIES", "Attribute", "AttributeClass", "Family", "VocabularyName"]

AttributeClass = Literal["colour", "size", "number", "shape", "material", "place", "relation"]
CLASSES: tuple[AttributeClass, ...] = get_args(AttributeClass)
VocabularyName = Literal["english", "scenes"]

Family = tuple[tuple[str, ...], ...]
"""Groups of words; those of one group mean the same."""


def _any(words: list[str]) -> str:
    """A regular expression of any of the words or phrases, the longest first."""
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word))) + ")"


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One class of attributes.

    Args:
        families: the words, see above.
        frame: a regular expression of one statement, in which `{word}` stands for any of the words.
        stand_in: what takes the place of a statement that is removed, where the sentence needs something.
        plural: whether a word may have an "s" or "es", which a stand-in and another word then get too.
    """

    families: tuple[Family, ...]
    frame: str = "{word}"
    stand_in: str = ""
    plural: bool = False

    @cached_property
    def word(self) -> re.Pattern[str]:
        """Finds the words; group 1 is the word without its plural's ending."""
        words = [word for family in self.families for group in family for word in group]
        return re.compile(rf"(?<![\w.-])({_any(words)}){'(e?s)?' if self.plural else '()'}(?![\w-])", re.IGNORECASE)

    @cached_property
    def phrase(self) -> re.Pattern[str]:
        """Finds the statements."""
        words = [word for family in self.families for group in family for word in group]
        word = _any(words) + ("(?:e?s)?" if self.plural else "")
        return re.compile(rf"(?<![\w.-]){self.frame.replace('{word}', word)}(?![\w-])", re.IGNORECASE)

    def others(self, word: str) -> list[str]:
        """What could stand there instead and be wrong: the first word of each other group of the word's family."""
        for family in self.families:
            if any(word.lower() in group for group in family):
                return [group[0] for group in family if word.lower() not in group]
        return []


def _apart(*words: str) -> Family:
    return tuple((word,) for word in words)


_SIDES = (
    _apart("left", "right"),
    (("upper",), ("lower",)),
    _apart("top", "bottom"),
    _apart("foreground", "background"),
)

_ENGLISH: dict[AttributeClass, Attribute] = {
    "colour": Attribute(
        families=(
            (
                ("red", "scarlet", "crimson", "maroon"),
                ("orange",),
                ("yellow",),
                ("green", "turquoise", "teal"),
                ("blue", "navy", "cyan"),
                ("purple", "violet", "lavender"),
                ("pink", "magenta"),
                ("brown", "beige"),
                ("black",),
                ("white", "off-white"),
                ("grey", "gray"),
            ),
        ),
        frame=r"(?:(?:light|dark|bright|pale|deep|vivid|muted)[ -])?{word}(?:[ -]colou?red)?",
    ),
    "size": Attribute(
        families=(
            (("small", "little", "tiny", "miniature"), ("large", "big", "huge", "enormous", "giant", "massive")),
            _apart("tall", "short"),
            (("wide", "broad"), ("narrow",)),
            _apart("thick", "thin"),
        ),
        frame=r"(?:(?:very|quite|rather|relatively)\s+)?{word}",
    ),
    "number": Attribute(
        families=(
            (
                ("two", "2"),
                ("three", "3"),
                ("four", "4"),
                ("five", "5"),
                ("six", "6"),
                ("seven", "7"),
                ("eight", "8"),
                ("nine", "9"),
                ("ten", "10"),
            ),
            # Alone in its family: in its place another number would need another form of the noun.
            _apart("one"),
            (("several", "many", "numerous", "multiple"),),
        ),
        frame=r"{word}(?![.,:]\d)(?!\s+(?:of|another|is|are|was|were|has|have|who|that|which)\b)",
    ),
    "shape": Attribute(
        families=((("round", "circular"), ("square",), ("triangular",), ("rectangular",), ("oval",), ("star-shaped",)),)
    ),
    "material": Attribute(
        families=(
            (
                ("wooden",),
                ("metal", "metallic"),
                ("plastic",),
                ("stone",),
                ("brick",),
                ("leather",),
                ("concrete",),
                ("marble",),
                ("ceramic",),
            ),
        ),
        frame=r"(?:made\s+(?:of|from)\s+)?{word}",
    ),
    "place": Attribute(
        families=(*_SIDES, (("center", "centre", "middle", "distance"),)),
        frame=r"(?:in|on|at|to|toward|towards|near)\s+the\s+(?:far\s+)?{word}(?:[ -]{word})?+"
        r"(?:[ -]hand)?+(?:\s+(?:side|corner|half|part|edge|third|portion))?+"
        r"(?:\s+of\s+the\s+(?:image|picture|photo|photograph|frame|scene|composition)|(?!\s+of\b))",
    ),
    "relation": Attribute(
        families=(
            _apart("to the left of", "to the right of"),
            _apart("on the left of", "on the right of"),
            _apart("left of", "right of"),
            (("above", "on top of"), ("below", "under", "underneath", "beneath")),
            _apart("behind", "in front of"),
            _apart("inside", "outside"),
            (("next to", "beside", "adjacent to", "close to"), ("far from",)),
            _apart("between"),
        ),
        frame=r"{word}(?:\s+(?:it|them|him)\b)?",
        stand_in="and",
    ),
}

_SCENES: dict[AttributeClass, Attribute] = {
    # Objects and backgrounds have colours of their own, so that a wrong one is still one of this world.
    "colour": Attribute(families=(_apart(*COLOURS), _apart(*BACKGROUNDS))),
    "size": Attribute(families=(_apart(*SIZES),)),
    "number": Attribute(families=(_apart("two", "three"), _apart("one")), frame=r"{word}(?=\s+objects?\b)"),
    "shape": Attribute(families=(_apart(*SHAPES),), stand_in="shape", plural=True),
    "place": Attribute(
        families=(_apart("upper", "lower"), _apart("left", "right")),
        frame=rf"(?:in\s+the\s+{_any(list(QUADRANTS))}|{_any(list(QUADRANTS))}(?=:))",
    ),
    "relation": Attribute(families=(_apart("left of", "right of", "above", "below"),), stand_in="and"),
}

VOCABULARIES: dict[VocabularyName, dict[AttributeClass, Attribute]] = {"english": _ENGLISH, "scenes": _SCENES}
"""`english` for prose of any kind; `scenes` has exactly what the procedural scenes can be."""
