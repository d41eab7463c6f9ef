"""The changes themselves: a caption in, a caption out, the same on every machine and whatever its neighbours say."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from typing import TYPE_CHECKING

from lens_caption.arms.attributes import falsify, remove
from lens_caption.arms.config import (
    AltTextChange,
    BriefChange,
    RemoveChange,
    ShuffleChange,
    StructuredChange,
    TruncateChange,
)
from lens_caption.arms.vocabulary import VOCABULARIES
from lens_caption.quality.text import sentences

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lens_caption.arms.config import Change
    from lens_caption.arms.vocabulary import Attribute, AttributeClass, VocabularyName

__all__ = ["apply_changes", "lot"]

_PICTURE = r"(?:the|this|these|an?)\s+(?:\w+\s+)?(?:image|picture|photo|photograph|scene|illustration)s?"
_THERE = r"there\s+(?:is|are)\s+"
# A picture may also be what hangs on the wall: it is a preamble only with what makes it one.
_PREAMBLE = re.compile(
    rf"^(?:{_PICTURE}\s+(?:shows?|depicts?|features?|captures?|displays?|presents?|(?:(?:is|are)\s+)?of)\s+(?:{_THERE})?"
    rf"|in\s+{_PICTURE}(?:\s*,\s*(?:{_THERE})?|\s+{_THERE})|{_THERE})",
    re.IGNORECASE,
)
_MARK = re.compile(r"[,;:–—](?=\s)|\s[–—(]")
_RELATIVE = re.compile(r"\s(?:which|that|who|where|while|as|and\s+there)\s", re.IGNORECASE)
_ARTICLES = {"a", "an", "the"}
_USELESS = ("image", "photo", "picture", "untitled", "photo {n}", "img_{n}", "screenshot {n}")


def lot(*parts: object) -> random.Random:
    """Random numbers of the parts and of nothing else; only `random()` of it is the same in every version of Python."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def apply_changes(
    text: str, changes: Sequence[Change], vocabulary: VocabularyName, *, seed: int, key: str
) -> tuple[str, Counter[str]]:
    """The caption after all changes, in their order, and what they did.

    Returns:
        the text, and counts for the provenance: `words_cut` (by `truncate`, `brief` and `alt-text`), `sentences_moved`,
        `removed_CLASS`, and `facts` that could be wrong with `wrong_facts` of them.
    """
    did: Counter[str] = Counter()
    for number, change in enumerate(changes):
        rng = lot(seed, number, change.type, key)
        words = len(text.split())
        if isinstance(change, TruncateChange):
            text = _truncated(text, change.words)
        elif isinstance(change, BriefChange):
            text = _brief(text, change.words)
        elif isinstance(change, AltTextChange):
            text = _alt_text(text, change, rng)
        elif isinstance(change, StructuredChange):
            text = _structured(text)
        elif isinstance(change, ShuffleChange):
            text, moved = _shuffled(text, rng)
            did["sentences_moved"] += moved
        elif isinstance(change, RemoveChange):
            text = _removed(text, change.classes, VOCABULARIES[vocabulary], did)
        else:
            made = falsify(text, VOCABULARIES[vocabulary], change.share, rng, change.classes)
            text = made.text
            did += Counter({"facts": made.facts, "wrong_facts": made.wrong})
        if isinstance(change, TruncateChange | BriefChange | AltTextChange):
            did["words_cut"] += max(0, words - len(text.split()))
    return text, +did


def _truncated(text: str, words: int) -> str:
    kept = text.split(maxsplit=words)
    return text if len(kept) <= words else text[: len(text) - len(kept[-1])].rstrip()


def _brief(text: str, words: int) -> str:
    first = next(iter(sentences(text)), "")
    first = _PREAMBLE.sub("", first, count=1).strip() or first
    marks = (mark.start() for mark in _MARK.finditer(first))
    # A comma after fewer than three words stands between adjectives, and ends no clause.
    clause = next((at for at in marks if len(first[:at].split()) >= 3), len(first))
    relative = _RELATIVE.search(first, 0, clause)
    return _truncated(first[: relative.start() if relative else clause], words).rstrip(" .,;:!?")


def _alt_text(text: str, change: AltTextChange, rng: random.Random) -> str:
    if rng.random() < change.useless:
        return _USELESS[int(rng.random() * len(_USELESS))].format(n=int(rng.random() * 1000))
    said = [word for word in _brief(text, len(text)).lower().split() if word not in _ARTICLES]
    return " ".join(said[: change.words]).rstrip(" .,;:!?")


def _structured(text: str) -> str:
    first, *rest = sentences(text) or [text]
    return "\n".join([f"summary: {first}", *(f"detail {number}: {said}" for number, said in enumerate(rest, 1))])


def _shuffled(text: str, rng: random.Random) -> tuple[str, int]:
    said = sentences(text)
    order = [number for _, number in sorted((rng.random(), number) for number in range(len(said)))]
    moved = sum(a != b for a, b in enumerate(order))
    return (" ".join(said[number] for number in order), moved) if moved else (text, 0)


def _removed(
    text: str,
    classes: Sequence[AttributeClass],
    vocabulary: Mapping[AttributeClass, Attribute],
    did: Counter[str],
) -> str:
    for name in classes:
        if name in vocabulary:
            text, count = remove(text, vocabulary[name])
            did[f"removed_{name}"] += count
    return text
