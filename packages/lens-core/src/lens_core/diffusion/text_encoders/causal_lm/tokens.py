"""Text to token ids: a template's fixed tokens around a prompt that can only ever be plain text.

The prompt is tokenised apart from the template, by the tokenizer's text pipeline alone. So a `<|end|>` that somebody
types becomes the characters it consists of, and where the prompt begins is a count, not a search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PromptTokens"]


class PromptTokens:
    """Token ids of prompts inside a template.

    Args:
        tokenizer: a fast tokenizer of transformers.
        before: template text in front of the prompt; its control tokens count as such.
        after: template text behind the prompt, likewise.
        drop_prefix: whether the tokens of `before` are only context: they are `prefix`, and no text's ids hold them.
        max_tokens: what template and prompt may have together.

    Raises:
        ConfigError: the template leaves no room, or the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, *, before: str, after: str, drop_prefix: bool, max_tokens: int):
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self.backend is None:
            raise ConfigError(f"{type(tokenizer).__name__} is no fast tokenizer: a tokenizer.json is needed")
        head, self.tail = (_ids_of(tokenizer, text) for text in (before, after))
        self.prefix, self.head = (head, []) if drop_prefix else ([], head)
        fixed = len(head) + len(self.tail)
        self.room = max_tokens - fixed
        if self.room < 1:
            raise ConfigError(f"max_tokens: {max_tokens} leave no room for a prompt; the template alone has {fixed}")
        self.control = {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special or token.content.strip()
        }

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text with its template; none for a text that is empty or blank."""
        return [
            [*self.head, *self.plain(text)[: self.room], *self.tail] if text and not text.isspace() else []
            for text in texts
        ]

    def plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing is a control token."""
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text that could be encoded
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        pieces = [text]
        if self.backend.pre_tokenizer is not None:
            pieces = [piece for piece, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]
        ids = [token.id for piece in pieces for token in self.backend.model.tokenize(piece)]
        # A vocabulary that lists its control tokens among the words could still produce one.
        return [index for index in ids if index not in self.control]


def _ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
