"""Attributes of a caption: found, removed, made wrong; by rule, and the rest of the text stays letter by letter."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lens_caption.arms.vocabulary import CLASSES, VOCABULARIES

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Mapping

    from lens_caption.arms.vocabulary import Attribute, AttributeClass

__all__ = ["Falsified", "falsify", "remove", "stated"]

_JOINED = r"(?:\s*,\s*(?:and\s+|or\s+)?|\s+and\s+|\s+or\s+|\s*[/-]\s*|\s+)"
_DANGLING = re.compile(r"\s*\b(?:is|are|was|were|on|in|of|and|or|with|,)\s*$", re.IGNORECASE)
_COPULA = re.compile(r"\b(?:is|are|was|were)\s+$", re.IGNORECASE)
_ARTICLE = re.compile(r"\b(an?)(\s+)$", re.IGNORECASE)
_VOWEL = re.compile(r"(?!uni|use|usu|eu|one\b|once)[aeiou]|hour|honest|8\b|11\b", re.IGNORECASE)
_JOIN = re.compile(r"\s*,\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+")
_DETERMINERS = "an?|the|his|her|its|their"
_DETERMINER = re.compile(rf"\b(?:{_DETERMINERS})\s+$", re.IGNORECASE)
_OPEN = re.compile(rf"(?:,|\b(?:{_DETERMINERS}|is|are|was|were|on|in|of|with))\s+$", re.IGNORECASE)
# How what comes after a verb or preposition that has lost its word may go on without it.
_APART = re.compile(
    rf"\s*(?:[.,;!?)]|$)|\s+(?:with|on|in|at|near|by|from|and\s+(?:{_DETERMINERS})|(?:and\s+)?"
    r"(?:is|are|was|were|has|have|(?:stand|walk|hold|wear|look|lean)(?:s|ing)|sits|sitting|lies|lying))\b"
)
# "A small, red ball" loses its comma as well, "a bed, red curtains" does not.
_ADJECTIVES = "|".join(VOCABULARIES["english"][name].phrase.pattern for name in ("colour", "size", "shape", "material"))
_ADJECTIVE = re.compile(rf"({_ADJECTIVES})(?:{_JOIN.pattern})$", re.IGNORECASE)
_START = re.compile(r"(?:^|[.!?…]\s+)$")


def stated(text: str, vocabulary: Mapping[AttributeClass, Attribute]) -> Counter[AttributeClass]:
    """How many attributes a text states, by class."""
    return Counter({name: sum(1 for _ in attribute.phrase.finditer(text)) for name, attribute in vocabulary.items()})


def remove(text: str, attribute: Attribute) -> tuple[str, int]:
    """The text without statements of that class, and how many there were; one without any comes back as it is."""
    phrase = attribute.phrase
    # "red, white and blue" goes as a whole; but where something stands in, it does so for each.
    chain = rf"{phrase.pattern}(?:{_JOINED}{phrase.pattern})*" if not attribute.stand_in else phrase.pattern
    found = re.compile(chain, phrase.flags)
    removed = 0
    while found.search(text):  # again, if what was apart meets and makes another
        starts = [match.start() for match in phrase.finditer(text)]
        done, at = "", 0
        while match := found.search(text, at):
            removed += sum(match.start() <= start < match.end() for start in starts)
            done, at = _without(done + text[at : match.start()], match, attribute)
        text = done + text[at:]
    return text, removed


@dataclass(frozen=True)
class Falsified:
    """A text, how many of its statements could be wrong, and how many now are."""

    text: str
    facts: int
    wrong: int


def falsify(
    text: str,
    vocabulary: Mapping[AttributeClass, Attribute],
    share: float,
    rng: random.Random,
    classes: Collection[AttributeClass] = CLASSES,
) -> Falsified:
    """Exchange a word of each statement with probability `share`, each by a lot of its own.

    A statement counts where one of its words has another to stand in its place. With the same lots, what is wrong at a
    share is wrong at every greater one, in the same way.
    """
    facts: dict[int, tuple[int, Attribute]] = {}
    for name in classes:
        if name in vocabulary:
            for match in vocabulary[name].phrase.finditer(text):
                facts.setdefault(match.start(), (match.end(), vocabulary[name]))
    done, at, counted, wrong = "", 0, 0, 0
    for start, (end, attribute) in sorted(facts.items(), key=lambda item: item[0]):
        words = [word for word in attribute.word.finditer(text, start, end) if attribute.others(word[1])]
        if start < at or not words:
            continue
        lots = rng.random(), rng.random(), rng.random()
        counted += 1
        if lots[0] < share:
            word = words[int(lots[1] * len(words))]
            others = attribute.others(word[1])
            other = _like(word, others[int(lots[2] * len(others))])
            done = _fit_article(done + text[at : word.start()], other) + other
            at = word.end()
            wrong += 1
    return Falsified(done + text[at:], counted, wrong)


def _without(before: str, match: re.Match[str], attribute: Attribute) -> tuple[str, int]:
    """What is left of the text before a statement, with what stands in for it; and where to go on after it."""
    text, at = match.string, match.end()
    starts = _at_end(_START, before) is not None
    # "above it" goes with its pronoun, and then nothing is left to be joined.
    if attribute.stand_in == "and" and not starts and attribute.word.fullmatch(match[0]):
        verb = _at_end(_COPULA, before)
        return f"{before[: verb.start()] if verb else before}and", at
    if attribute.stand_in not in ("", "and"):
        word = attribute.word.search(match[0])
        assert word is not None, "a statement holds a word"
        other = _like(word, attribute.stand_in)
        return _fit_article(before, other) + other, at
    if starts:  # of a sentence: the next word takes the capital letter
        at = _skip(r"[\s.,;:!?]+(?:(?:and|or)\s+)?", text, at)
        first = text[at : at + 1]
        return (before + first.upper(), at + 1) if match[0][0].isupper() and first.isascii() else (before, at)
    joined = _JOIN.match(text, at)
    if _APART.match(text, at) and not (joined and _at_end(_DETERMINER, before)):
        verb = _at_end(_DANGLING, before)  # "the ball is red." loses its verb, too
        return (before[: verb.start()] if verb else before).rstrip(), at
    if joined and _at_end(_OPEN, before):  # "a small, round table", "in blue and gold", "the red and the new car"
        at = _skip(r"(?:an?|the)\s+", text, joined.end())
    else:
        at = _skip(r":?\s+", text, at)
        if adjective := _at_end(_ADJECTIVE, before):
            before = before[: adjective.end(1)] + " "
    return _fit_article(before, text[at : at + 8]), at


def _at_end(pattern: re.Pattern[str], before: str) -> re.Match[str] | None:
    """What a text ends in; only its end is looked at, so that no text takes time that grows with its square."""
    return pattern.search(before, max(0, len(before) - 24))


def _skip(pattern: str, text: str, at: int) -> int:
    match = re.compile(pattern).match(text, at)
    return match.end() if match else at


def _like(word: re.Match[str], other: str) -> str:
    """Another word in the place of one, with its capital letter and its plural."""
    if word[2]:
        other += "es" if other.endswith("s") else "s"
    return other[0].upper() + other[1:] if word[1][0].isupper() else other


def _fit_article(before: str, following: str) -> str:
    """The text with the form of its last article that the next word needs, if it ends in an article."""
    article = _at_end(_ARTICLE, before)
    if article is None or not following[:1].isalnum():
        return before
    form = "an" if _VOWEL.match(following) else "a"
    return before[: article.start()] + (form.capitalize() if article[1][0] == "A" else form) + article[2]
