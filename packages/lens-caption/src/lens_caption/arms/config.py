"""Settings of the changes that make one caption arm of another; each is pure, and keyed by seed and image."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lens_caption.arms.vocabulary import CLASSES, AttributeClass
from lens_core.config.base import Config

__all__ = [
    "AltTextChange",
    "BriefChange",
    "Change",
    "RemoveChange",
    "ShuffleChange",
    "StructuredChange",
    "TruncateChange",
    "WrongFactsChange",
]


class TruncateChange(Config):
    """The first words of a caption, and no more."""

    type: Literal["truncate"] = "truncate"
    words: int = Field(gt=0, description="How many are kept; what stands between spaces is a word.")


class ShuffleChange(Config):
    """The sentences in an order drawn by lot."""

    type: Literal["shuffle"] = "shuffle"


class BriefChange(Config):
    """The first sentence, without "The image shows", up to where its first clause ends."""

    type: Literal["brief"] = "brief"
    words: int = Field(12, gt=0, description="How many words it has at most.")


class AltTextChange(Config):
    """What the web writes: a few words of the first sentence without articles, or nothing useful."""

    type: Literal["alt-text"] = "alt-text"
    words: int = Field(4, gt=0, description="How many words it has at most.")
    useless: float = Field(0.3, ge=0, le=1, description='Share of the captions that become something like "photo 3".')


class StructuredChange(Config):
    """The same sentences as named fields: a summary, and numbered details."""

    type: Literal["structured"] = "structured"


class RemoveChange(Config):
    """Everything but what is said of one or more classes of attributes."""

    type: Literal["remove"] = "remove"
    classes: tuple[AttributeClass, ...] = Field(min_length=1, description="What is no longer said.")


class WrongFactsChange(Config):
    """Attributes exchanged for others of their kind: red for blue, left for right, two for three."""

    type: Literal["wrong-facts"] = "wrong-facts"
    share: float = Field(ge=0, le=1, description="How many of the attributes become wrong, each by a lot of its own.")
    classes: tuple[AttributeClass, ...] = Field(CLASSES, min_length=1, description="Which may become wrong.")


def _by_name(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Change = Annotated[
    Annotated[
        TruncateChange
        | ShuffleChange
        | BriefChange
        | AltTextChange
        | StructuredChange
        | RemoveChange
        | WrongFactsChange,
        Field(discriminator="type"),
    ],
    BeforeValidator(_by_name),
]
"""One change; in YAML a mapping with `type`, or a bare name where nothing needs to be set."""
