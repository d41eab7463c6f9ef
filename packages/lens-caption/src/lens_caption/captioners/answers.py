"""What an answer's words mean, whoever wrote them: captions by layer, or one of the ways in which there is none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lens_caption.prompts import AnswerError
from lens_core.contracts import CaptionOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lens_caption.prompts import Recipe

__all__ = ["outcome_of_text"]

# A refusal in prose opens the answer; a caption may well contain "I can't" in quotation marks further on.
_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very )?sorry|sorry,|i (can['’]?t|cannot|am unable to|am not able to|won['’]?t) "
    r"(help|assist|provide|describe|identify|comply|process|view|see|fulfil)|unable to (describe|process|assist))",
    re.IGNORECASE,
)


def outcome_of_text(key: str, text: str, recipe: Recipe, provenance: Mapping[str, str | int | float]) -> CaptionOutcome:
    """Read a whole answer.

    Args:
        key: the image's key.
        text: what was answered.
        recipe: what was asked, and how an answer is read.
        provenance: facts about the answer.
    """
    text = text.strip()
    if not text:
        return CaptionOutcome(key=key, status="empty", detail="the answer is empty", provenance=provenance)
    if _REFUSAL.match(text):
        return CaptionOutcome(key=key, status="refusal", detail=text[:200], provenance=provenance)
    try:
        layers = recipe.read(text)
    except AnswerError as error:
        return CaptionOutcome(key=key, status="schema-invalid", detail=str(error)[:300], provenance=provenance)
    return CaptionOutcome(
        key=key,
        status="ok",
        text=layers[recipe.layers[0].name],
        provenance=provenance,
        layers=layers if len(layers) > 1 else {},
    )
