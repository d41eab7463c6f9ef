"""Taking captions apart: what stands in quotation marks, sentences, words, scripts.

What stands in quotation marks was copied from the image: it may be in any language, repeat itself and say anything, so
most gates look at the caption without it.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter

__all__ = ["normal", "printable", "resemblance", "script_shares", "sentences", "unquoted", "words"]

# Pairs of marks; an apostrophe is none, so single straight quotes are left alone.
# The limit keeps a text full of opening marks from taking time that grows with its square.
_PAIRS = (('"', '"'), ("“", "”"), ("«", "»"), ("„", "“"), ("„", "”"), ("「", "」"), ("『", "』"))
_QUOTED = re.compile("|".join(f"{a}[^{a}{b}]{{0,1000}}{b}" for a, b in _PAIRS) + r"|(?<!\w)‘[^‘’]{0,1000}’(?!\w)")
_STOP = re.compile(r"(?<=[.!?…])[\"”»’)\]]*\s+|(?<=[。！？])[」』”）]*\s*")
# After these a full stop ends no sentence.
_SHORT = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|St|Mt|No|vs|approx|ca|e\.g|i\.e|[A-Z])\.$")
# Where a lower-case letter follows these, the sentence goes on.
_PAUSE = re.compile(r"[\"”»’)\]]$|(?:^|[\s(])(?:[a-z]\.[a-z]|etc)\.$", re.IGNORECASE)
_DENSE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_DENSE}]|(?:(?![{_DENSE}])[\w'’])+")
_MASK = "\ue000"


def unquoted(text: str) -> str:
    """The caption without what it quotes."""
    return _QUOTED.sub('""', text)


def sentences(text: str) -> list[str]:
    """The sentences of a caption; a quotation is never cut in two."""
    # Quotations are masked by as many characters, so that the cuts are valid in the text itself. The closing mark
    # stays when a sentence ends inside it.
    masked = _QUOTED.sub(lambda match: _MASK * (len(match[0]) - 2) + match[0][-2:], text)
    found, start = [], 0
    for stop in [*(match for match in _STOP.finditer(masked)), None]:
        end = stop.end() if stop else len(text)
        piece = text[start:end].strip()
        if stop:
            # Only the end is looked at, so that no text takes time that grows with its square.
            before = masked[max(start, stop.start() - 12) : end].rstrip()
            if _SHORT.search(before) or (masked[end : end + 1].islower() and _PAUSE.search(before)):
                continue
        if piece:
            found.append(piece)
        start = end
    return found


def words(text: str) -> list[str]:
    """Words in lower case; in Chinese, Japanese and Thai, which put no spaces, characters."""
    return _WORD.findall(text.lower())


def normal(text: str) -> str:
    """Words without case, punctuation and spacing: what two texts that say the same in the same words share."""
    return " ".join(words(unicodedata.normalize("NFKC", text)))


def printable(text: str) -> str:
    """The text on one line of a terminal: captions are somebody else's, and nothing in them may steer it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))


def resemblance(a: str, b: str) -> float:
    """How much two captions have in common: shared words and pairs of words over all of them (Jaccard), 0 to 1."""
    features_a, features_b = _features(a), _features(b)
    union = features_a | features_b
    return len(features_a & features_b) / len(union) if union else 1.0


def script_shares(text: str) -> dict[str, float]:
    """Share of each script among the letters, such as {"LATIN": 0.9, "CJK": 0.1}."""
    # The first word of a letter's Unicode name is its script.
    counts = Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for letter in text if letter.isalpha())
    total = sum(counts.values())
    return {script: count / total for script, count in counts.items()}


def _features(text: str) -> set[str | tuple[str, ...]]:
    tokens = words(text)
    return {*tokens, *itertools.pairwise(tokens)}
