"""The prompt template of the released weights, and whether a given one is that.

Two of its strings belong to the release and are not in this project: `lens import` finds them by their sha256 in a copy
of the released code and puts them into `lens.json`. The rest of the text is written by gpt-oss's chat template; see
`lens_core.diffusion.text_encoders.gpt_oss.harmony`.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lens_core.errors import ArtifactError

__all__ = ["RELEASED_DATE", "RELEASED_HASHES", "Template", "check_prefix", "sha256"]

RELEASED_HASHES = {
    "system": "e24f171b7b03a2bc7fc63d0920809c1199d1b37a5a5b04060d702fb8a012f065",
    "thinking": "b94ecdcccf28666a003970aa5d8bbc8bb7f7da376edcbeb9ce6ad2fece35398a",
}
"""sha256 of the release's two strings: what the instructions say, and what the model is made to think."""

RELEASED_DATE = "2026-05-23"
RELEASED_PREFIX = 97
GPT_OSS_WORDS = 199_998
"""Vocabulary of the real tokenizer, without its control tokens."""


def sha256(text: str) -> str:
    """A text's sha256 in hex, as in `RELEASED_HASHES`."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Template:
    """The strings of `lens.json`'s `template`.

    Args:
        system: instructions for the model.
        thinking: the model's analysis, given to it.
        date: the current date as the prompt states it, like 2026-05-23.
    """

    system: str
    thinking: str
    date: str = RELEASED_DATE

    @classmethod
    def read(cls, template: Any, *, released: bool, where: str) -> Template:
        """A template from `lens.json`.

        Args:
            template: the field's value.
            released: whether it must be the release's own.
            where: the file, for messages.

        Raises:
            ArtifactError: there is none, it is not of this form, or not the released one.
        """
        if template is None:
            raise ArtifactError(
                f"{where}: template: gpt-oss needs the prompt template; `lens import` finds it in the released code"
            )
        if not isinstance(template, Mapping):
            raise ArtifactError(f"{where}: template must be an object with the texts system, thinking and date")
        said = {"date": RELEASED_DATE, **template}
        for key in ("system", "thinking", "date"):
            if not isinstance(said.get(key), str):
                raise ArtifactError(f"{where}: template.{key} must be a text")
        if not _is_date(said["date"]):
            raise ArtifactError(f"{where}: template.date {said['date']!r} is no date like {RELEASED_DATE}")
        made = cls(said["system"], said["thinking"], said["date"])
        differs = made.differs()
        if released and differs:
            raise ArtifactError(
                f"{where}: template.{differs[0]} is not the released one (its sha256 differs), so the features would "
                "be others; run `lens import` again, or set text_encoder.template to custom if that is meant"
            )
        return made

    def differs(self) -> list[str]:
        """Which strings are not those of the release."""
        strings = {"system": self.system, "thinking": self.thinking}
        return [name for name, text in strings.items() if sha256(text) != RELEASED_HASHES[name]]


def check_prefix(count: int, *, words: int) -> None:
    """Check the number of tokens in front of a prompt under the released template.

    Args:
        count: what was measured.
        words: size of the tokenizer; a smaller one than gpt-oss's is not judged.

    Raises:
        ArtifactError: it is not the released number.
    """
    if words >= GPT_OSS_WORDS and count != RELEASED_PREFIX:
        raise ArtifactError(
            f"tokenizer: the released template has {RELEASED_PREFIX} tokens before the prompt, here it has {count}; "
            "the chat template or the tokenizer is not the released one"
        )


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
