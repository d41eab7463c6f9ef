"""Refuses prompts that have certain words in them.

Prompt and list are compared word by word, after Unicode's compatibility forms, case and invisible characters have been
made equal. A word counts only as a whole: "ass" does not forbid "assassin", nor "gun" the plural. Scripts that put no
blanks between words (Chinese, Japanese, Thai and their neighbours) are compared character by character.

This stops the careless, not the determined: letters spelt apart, digits for letters and look-alikes of other alphabets
pass. A list is no judge of meaning.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from lens_serve.safety.block_list.config import BlockListConfig

__all__ = ["BlockList", "words_of"]

MAX_ENTRIES = 100_000
MAX_ENTRY_CHARS = 200
_REASON = "it has words that are not drawn here"

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, kana, Han."""


_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Letters and marks that show nothing; the other characters nobody sees have a category of their own, Cf."""


class BlockList:
    """Refuses a prompt that has an entry of the list in it; of pictures it has no opinion.

    The reason does not say which entry it was: a list is easier to get around when it can be read.

    Raises:
        ConfigError: the file cannot be read, or an entry has no letter or digit in it; with the line.
    """

    def __init__(self, config: BlockListConfig):
        self.config = config
        self._phrases: set[tuple[str, ...]] = set()
        for place, entry in enumerate(config.words):
            self._add(entry, key=f"words[{place}]")
        if config.file is not None:
            for line, entry in _entries(config.file):
                self._add(entry, file=config.file, line=line)
        if not self._phrases:
            raise ConfigError("a block list without an entry blocks nothing", file=config.file)
        self._lengths = sorted({len(phrase) for phrase in self._phrases})

    def check_prompt(self, prompt: str) -> str | None:
        """A reason if an entry is in the prompt."""
        words = words_of(prompt)
        for length in self._lengths:
            if any(words[start : start + length] in self._phrases for start in range(len(words) - length + 1)):
                return _REASON
        return None

    def check_image(self, image_HW3: np.ndarray) -> str | None:
        """None."""
        return None

    def _add(self, entry: str, *, key: str | None = None, file: str | None = None, line: int | None = None) -> None:
        phrase = words_of(entry)
        if not phrase:
            raise ConfigError("an entry needs a letter or a digit", key=key, file=file, line=line)
        self._phrases.add(phrase)


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text as they are compared."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words, word = [], ""
    for char in text:
        kind = unicodedata.category(char)
        if kind == "Cf" or _UNSEEN.match(char):
            continue
        if kind[0] in "LNM" and not _UNSPACED.match(char):
            word += char
            continue
        words += [word, char] if kind[0] in "LNM" else [word]
        word = ""
    return tuple(filter(None, [*words, word]))


def _entries(file: str) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and what stands there."""
    try:
        data = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"the block list cannot be read: {error.strerror}", file=file) from error
    lines = data.split(b"\n")
    if len(lines) > MAX_ENTRIES:
        raise ConfigError(f"a block list has {MAX_ENTRIES} lines at most, not {len(lines)}", file=file)
    for line, raw in enumerate(lines, 1):
        try:
            entry = raw.decode("utf-8-sig" if line == 1 else "utf-8").partition("#")[0].strip()
        except UnicodeDecodeError as error:
            raise ConfigError("not UTF-8: save the file in that encoding", file=file, line=line) from error
        if len(entry) > MAX_ENTRY_CHARS:
            raise ConfigError(f"an entry has {MAX_ENTRY_CHARS} characters at most", file=file, line=line)
        if entry:
            yield line, entry
