"""Gates: one small function per fault, each with its settings; a reason if the caption fails, else None.

    loops("a cat a cat a cat a cat a cat a cat", LoopsGate())    # 'repeats "a cat" 6 times in a row'

The first gates look at a caption alone; a sentence that many images share shows only across captions.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from lens_caption.quality.language import wrong_language
from lens_caption.quality.text import normal, sentences, unquoted, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lens_caption.quality.config import (
        BoilerplateGate,
        GatesConfig,
        LanguageGate,
        LengthGate,
        LoopsGate,
        ReasoningGate,
        RefusalGate,
        SharedSentenceGate,
    )

__all__ = [
    "CAPTION_GATES",
    "boilerplate",
    "countable_sentences",
    "failures",
    "language",
    "length",
    "loops",
    "reasoning",
    "refusal",
    "refuses",
]

_OPENING_CHARS = 300
_MAX_PERIOD = 60

_REFUSAL = re.compile(
    r"""
    \b(i['’]?m|i\s+am|we['’]?re|we\s+are)\s+(very\s+|so\s+|really\s+)?
      (sorry|afraid\s+i|unable|not\s+(able|allowed|comfortable))\b
    | (^|[.!]\s+)(sorry|apologies),?\s+(but\s+)?(i|we|this|that|can['’]t|cannot|unable)\b
    | \bi\s+(apologi[sz]e|must\s+decline|have\s+to\s+decline)\b
    | \b(i|we)\s*(can['’]?t|cannot|can\s+not|won['’]?t|will\s+not|could\s*n['’]?t|do\s+not|don['’]?t)\s+(\w+ly\s+)?
      (help|assist|provide|describe|identify|comply|process|view|see|fulfil|access|analy[sz]e|generate|continue|discuss
      |create|recogni[sz]e|have\s+the\s+ability|have\s+access|feel\s+comfortable)
    | \bas\s+an?\s+(ai|artificial|language\s+model|large\s+language)\b
    | \b(against|violates?)\s+(my|our|the|openai['’]s)\s+(\w+\s+)?(guidelines|polic(y|ies))\b
    | (?<!\bto\s)\b(please|could\s+you|can\s+you)\s+(re-?)?(upload|provide|share|attach|send)\b
    | \bno\s+image\s+(was|is|has\s+been)\s+(provided|attached|uploaded|included)\b
    | ^\W*unable\s+to\s+(describe|process|assist|view|analy[sz]e)\b
    | \blo\s+siento,\s+(pero\s+)?no\s+puedo\b | \bno\s+puedo\s+ayudar
    | \bje\s+suis\s+désolée?\b | \bje\s+ne\s+peux\s+pas\b
    | \bes\s+tut\s+mir\s+leid\b | \bich\s+kann\s+(dabei|das|ihnen|dir)\s+(leider\s+)?nicht\b
    | (很)?抱歉，?(但)?我 | 对不起，?我 | 我(无法|不能)(提供|描述|识别|帮助|协助)
    | 申し訳(ありません|ございません) | できかねます
    """,
    re.IGNORECASE | re.VERBOSE,
)

_REASONING = re.compile(
    r"""
    </?(think|thinking|thought|reasoning|analysis|answer|scratchpad)> | <\|\w+\|?> | \[/?INST\] | <</?SYS>>
    | <(start|end)_of_turn> | \bassistantfinal\b
    | (^|[.!?\n]\s*)(okay|ok|alright|hmm+|wait|so|now|first|right|well)[,.]?\s+(so\s+)?
      (let\s+me|let['’]s|i\s+(need|should|have|will|can|must|think|see|want)|i['’]ll|the\s+(user|task|instructions?)\b)
    | \blet\s+me\s+(describe|look|think|start|see|check|analy[sz]e|write|re-?read|examine|count|draft|try)\b
    | \bthe\s+(user|prompt|instructions?|task)\s+(wants?|asks?|asked|says?|said|requires?|is\s+asking|is\s+to)\b
    | \bi(\s+(should|need\s+to|have\s+to|must|will\s+now)|['’]ll\s+now)\s+
      (describe|mention|write|avoid|note|include|make\s+sure|be\s+careful|count|check|keep)\b
    | (^|\n)\s*
      (final\s+(answer|caption|version|description)|(my\s+)?draft|analysis|reasoning|thought(s|\s+process)?)\s*:
    | \b(fewer|less)\s+than\s+\d+\s+words\b | \bin\s+one\s+paragraph\s+of\b
    | ```
    """,
    re.IGNORECASE | re.VERBOSE,
)

_BOILERPLATE = re.compile(
    r"""
    ^[\s"'“‘>\-–—:(\[]*
    (
      (in|on|within)\s+(this|the|that)\s+(\w+[\s-]){0,3}?
        (image|picture|photo|photograph|scene|illustration|drawing|painting|screenshot)\b,?
    | (the|this|that)\s+(\w+[\s-]){0,3}?
        (image|picture|photo|photograph|illustration|drawing|painting|screenshot|scene)\s+
        (you\s+(shared|provided|uploaded)\s+)?(also\s+|clearly\s+|prominently\s+)?
        (shows?|depicts?|features?|captures?|displays?|portrays?|presents?|illustrates?|contains?|consists?|showcases?|is|has
        |appears|seems)\b
    | (this|it)\s+is\s+(an?|the)\s+(\w+[\s-]){0,4}?(image|picture|photo|photograph|illustration|drawing|screenshot)\b
    | here(['’]s|\s+is|\s+are)\s+(an?|the|your|my)\s+(\w+[\s-]){0,4}?(caption|description|paragraph|image|rewrite)
    | (sure|certainly|of\s+course|absolutely|great|okay|ok)\s*[,!.:]
    | (an?|the)\s+(image|picture)\s+(of|showing|that\s+shows|depicting)\b
    | (detailed\s+|dense\s+|image\s+|short\s+)*(caption|description)\s*:
    | (we|you|one)\s+(can\s+)?see\b | there\s+is\s+an?\s+(image|picture|photo)\b
    | (la|esta|esa)\s+(imagen|foto|fotografía|escena)\s+(muestra|presenta|representa|captura)
    | (l['’]|cette\s+|la\s+)(image|photo|photographie|scène)\s+(montre|présente|représente|capture)
    | (das|dieses)\s+(bild|foto)\s+(zeigt|stellt)
    | (这|該|该|此)?(张|幅|張)?(图片|图像|圖片|照片|图)(中|显示|展示|描绘|顯示)
    | (この|本)?(画像|写真)(は|に|には|では)
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)


def length(text: str, gate: LengthGate) -> str | None:
    """Too few or too many words."""
    count = len(words(text))
    if count < gate.min_words:
        return f"{count} words, fewer than {gate.min_words}"
    return f"{count} words, more than {gate.max_words}" if count > gate.max_words else None


def refusal(text: str, gate: RefusalGate) -> str | None:
    """An apology in place of a caption; a sign in the image may well say sorry."""
    match = _REFUSAL.search(unquoted(text))
    return f"says {_shown(match[0])}" if match else None


def refuses(text: str) -> bool:
    """Whether a text opens with an apology in place of a caption; a caption may well open with what a sign says."""
    said = unquoted(text.strip())
    said = text.strip()[1:-1] if said == '""' else said
    return bool(_REFUSAL.match(re.sub(r"^[^\w'\"]*(unfortunately,?\s+)?", "", said, flags=re.IGNORECASE)))


def reasoning(text: str, gate: ReasoningGate) -> str | None:
    """Thinking aloud, marks of a chat template, or the instruction itself."""
    match = _REASONING.search(unquoted(text))
    return f"says {_shown(match[0])}" if match else None


def boilerplate(text: str, gate: BoilerplateGate) -> str | None:
    """An opening that says nothing."""
    opening = re.sub(r"[*_#`]+", "", text[:_OPENING_CHARS])
    match = _BOILERPLATE.match(opening)
    if match:
        return f"begins with {_shown(match[0])}"
    opening = normal(opening) + " "
    for phrase in gate.also:
        if opening.startswith(normal(phrase) + " "):
            return f"begins with {_shown(phrase)}"
    return None


def loops(text: str, gate: LoopsGate) -> str | None:
    """A model that repeats itself: a phrase in a row, a sentence again and again, or the same few phrases."""
    tokens = words(text)
    row = _longest_row(tokens)
    if row:
        phrase, repeats = row
        if repeats > gate.max_repeats and repeats * len(phrase) >= gate.min_loop_words:
            return f"repeats {_shown(' '.join(phrase))} {repeats} times in a row"
    marks = re.search(r"(\S{1,4}?)\1{39,}", text)
    if marks:
        return f"repeats {_shown(marks[1])} without end"
    counts = Counter(normal(sentence) for sentence in sentences(text))
    sentence, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    if count > gate.max_same_sentence and len(words(sentence)) > 2:
        return f"says {_shown(sentence)} {count} times"
    grams = Counter(zip(*(tokens[start:] for start in range(_gram(tokens))), strict=False))
    total = sum(grams.values())
    share = 1 - len(grams) / total if total >= 20 else 0.0
    return f"{share:.0%} of its phrases occur before" if share > gate.max_repeated_share else None


def language(text: str, gate: LanguageGate) -> str | None:
    """Another language than the one asked for."""
    return wrong_language(unquoted(text), gate)


CAPTION_GATES: dict[str, Callable[[str, Any], str | None]] = {
    "refusal": refusal,
    "reasoning": reasoning,
    "boilerplate": boilerplate,
    "length": length,
    "loops": loops,
    "language": language,
}
"""The gates that look at a caption alone, by the name of their settings; the first that rejects gives the status."""


def failures(text: str, gates: GatesConfig) -> list[tuple[str, str]]:
    """The gates that a caption fails, with the reasons; what is skipped is not asked."""
    found = []
    for name, gate in CAPTION_GATES.items():
        settings = getattr(gates, name)
        if settings.action != "skip" and (reason := gate(text, settings)):
            found.append((name, reason))
    return found


def countable_sentences(text: str, gate: SharedSentenceGate) -> dict[str, str]:
    """The sentences that are long enough to be no chance when images share them: their wording by `normal` form."""
    found = {normal(sentence): sentence for sentence in sentences(text)}
    return {plain: sentence for plain, sentence in found.items() if plain.count(" ") + 1 >= gate.min_words}


def _longest_row(tokens: list[str]) -> tuple[list[str], int] | None:
    """The phrase whose repeats in a row cover the most words, and how often it occurs there."""
    best: tuple[int, int, int] | None = None  # words covered, start, period
    for period in range(1, min(_MAX_PERIOD, len(tokens) // 2) + 1):
        run = 0
        for position in range(period, len(tokens)):
            run = run + 1 if tokens[position] == tokens[position - period] else 0
            # A whole phrase has come again when the run is as long as the phrase.
            if run >= period and (best is None or run + period > best[0]):
                best = (run + period, position - run - period + 1, period)
    if best is None:
        return None
    covered, start, period = best
    return tokens[start : start + period], covered // period


def _gram(tokens: Iterable[str]) -> int:
    """Four words make a phrase; where words are single characters, ten do."""
    lengths = [len(token) for token in tokens]
    return 4 if sum(lengths) > 1.5 * len(lengths) else 10


def _shown(text: str) -> str:
    text = " ".join(text.split()).strip(" ,.!:;")
    return f'"{text[:60]}…"' if len(text) > 60 else f'"{text}"'
