"""What models are given where a rewriter stands before them: each text is rewritten once, for all pictures of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lens_core.errors import LensError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lens_core.config.base import ComponentConfig
    from lens_core.contracts import EvalTask, Rewriter
    from lens_core.registry import Registry

__all__ = ["Rewriting", "rewrite", "texts_of"]

PAUSES_S = (1.0, 5.0)
"""Between the attempts at one text: a language model behind an endpoint may fail once."""


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """Texts as a rewriter wrote them.

    Args:
        by: the rewriter's settings.
        texts: by what was asked.
    """

    by: ComponentConfig
    texts: Mapping[str, str]

    def changed(self, asked: Iterable[str]) -> int:
        """How many of these texts it did not leave as they are."""
        return sum(self.texts[text] != text for text in asked)


def texts_of(tasks: Sequence[EvalTask]) -> list[str]:
    """The different texts that are asked, in order."""
    return list(dict.fromkeys(prompt for task in tasks for prompt in task.prompts.values()))


def rewrite(
    texts: Sequence[str], by: ComponentConfig, registry: Registry, *, seed: int, on_text: Callable[[int], None]
) -> Rewriting:
    """Rewrite texts, one after the other.

    Args:
        texts: all different.
        by: the rewriter's settings.
        registry: where it comes from.
        seed: for what a prompt leaves open.
        on_text: called with how many are rewritten.

    Raises:
        LensError: one cannot be rewritten, after some attempts.
    """
    rewriter: Rewriter = registry.build("rewriters", by)
    rewritten: dict[str, str] = {}
    for text in texts:
        rewritten[text] = _patiently(rewriter, text, seed)
        on_text(len(rewritten))
    return Rewriting(by=by, texts=rewritten)


def _patiently(rewriter: Rewriter, text: str, seed: int) -> str:
    for pause_s in PAUSES_S:
        try:
            return rewriter.rewrite([text], seed=seed)[0]
        except LensError:
            time.sleep(pause_s)
    return rewriter.rewrite([text], seed=seed)[0]
