"""Which language a caption is in: by script and small words, or by the classifier of an extra.

Script settles most languages by itself. Those in Latin, Cyrillic and Arabic letters are told apart by how often their
commonest small words occur, which is certain for a sentence or two, and enough to find a model that fell into another
language. For anything finer there is `py3langid`.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from lens_caption.quality.text import script_shares, words
from lens_core.errors import MissingExtraError
from lens_core.specs import pip_line

if TYPE_CHECKING:
    from lens_caption.quality.config import LanguageGate

__all__ = ["wrong_language"]

_SCRIPTS = {
    "ar": {"ARABIC"},
    "de": {"LATIN"},
    "el": {"GREEK"},
    "en": {"LATIN"},
    "es": {"LATIN"},
    "fr": {"LATIN"},
    "he": {"HEBREW"},
    "hi": {"DEVANAGARI"},
    "it": {"LATIN"},
    "ja": {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK"},
    "ko": {"HANGUL", "CJK"},
    "nl": {"LATIN"},
    "pt": {"LATIN"},
    "ru": {"CYRILLIC"},
    "th": {"THAI"},
    "uk": {"CYRILLIC"},
    "zh": {"CJK"},
}
_SMALL_WORDS = {
    "de": "der die das und ist ein eine einen einem einer mit auf im von den dem zu sind sich nicht über unter neben",
    "en": "the and is a an of with in on at to are its it by from behind has that left right one two their near",
    "es": "el la los las y es un una de con en del al se que por sobre está su junto hay detrás",
    "fr": "le la les et est un une des de avec en du au sur dans se qui sont par son à près derrière il elle",
    "it": "il lo la gli le e è un una di con in del della al si che sono per su sulla nel dietro",
    "nl": "de het een en is van met op in zijn dat die te aan voor naast achter er wordt bij naar",
    "pt": "o a os as e é um uma de com em do da ao se que são por sobre no na está atrás",
    "ru": "и в на с не что из у по к за над под между рядом который это от его для стоит",
    "uk": "і в на з не що із у по до за над під між поруч який це від його для та є",
}
_MIN_SHARE = 0.7
_MIN_SMALL_WORDS = 0.08


def wrong_language(text: str, gate: LanguageGate) -> str | None:
    """Why a caption is in none of the languages asked for, or None.

    Args:
        text: the caption without what it quotes.
        gate: the settings.

    Raises:
        MissingExtraError: `py3langid` is asked for and not installed.
    """
    if not any(letter.isalpha() for letter in text):
        return None
    if gate.detector == "py3langid" and len(words(text)) >= gate.min_words:
        found = _classifier().classify(text)[0]
        return None if found in gate.languages else f"is in {found!r}, not in {_listed(gate)}"
    shares = script_shares(text)
    candidates = [code for code in gate.languages if _in_script(code, shares)]
    if not candidates:
        script = max(shares, key=lambda name: shares[name])
        return f"is in {script.lower()} letters, not in {_listed(gate)}"
    tokens = words(text)
    if len(tokens) < gate.min_words:
        return None
    best = _by_small_words(tokens, shares)
    if best is None or best in candidates or all(code not in _SMALL_WORDS for code in candidates):
        return None
    return f"is in {best!r}, not in {_listed(gate)}"


def _in_script(code: str, shares: dict[str, float]) -> bool:
    if code == "ja" and not any(name in shares for name in ("HIRAGANA", "KATAKANA")):
        return False  # Japanese prose is never all Chinese characters
    if code == "ko" and "HANGUL" not in shares:
        return False
    if code == "zh" and shares.get("HIRAGANA", 0) > 0.05:
        return False
    return sum(shares.get(name, 0.0) for name in _SCRIPTS.get(code, ())) >= _MIN_SHARE


def _by_small_words(tokens: list[str], shares: dict[str, float]) -> str | None:
    """The language whose small words are the most frequent, if they are frequent enough to tell."""
    scores = {
        code: sum(token in small for token in tokens) / len(tokens)
        for code, small in _small_words().items()
        if _in_script(code, shares)
    }
    best = max(scores, key=lambda code: scores[code], default=None)
    return best if best and scores[best] >= _MIN_SMALL_WORDS else None


@functools.cache
def _small_words() -> dict[str, frozenset[str]]:
    return {code: frozenset(text.split()) for code, text in _SMALL_WORDS.items()}


@functools.cache
def _classifier() -> Any:
    try:
        return importlib.import_module("py3langid")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the language gate's detector 'py3langid' needs the library 'py3langid', which is not installed; "
            f"install it with: {pip_line('lens-caption[language]')}"
        ) from error


def _listed(gate: LanguageGate) -> str:
    return " or ".join(map(repr, gate.languages))
