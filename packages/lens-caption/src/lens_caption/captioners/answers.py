"""What an answer's words mean, whoever wrote them: captions by layer, or one of the ways in which there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_caption.prompts import AnswerError
from lens_caption.quality.gates import refuses
from lens_core.contracts import CaptionOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lens_caption.prompts import Recipe

__all__ = ["outcome_of_text"]


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
    try:
        layers, fault = recipe.read(text), ""
    except AnswerError as error:
        layers, fault = {"": text}, str(error)
    refusal = next(filter(refuses, layers.values()), None)
    if refusal is not None:
        return CaptionOutcome(key=key, status="refusal", detail=refusal[:200], provenance=provenance)
    if fault:
        return CaptionOutcome(key=key, status="schema-invalid", detail=fault[:300], provenance=provenance)
    return CaptionOutcome(
        key=key,
        status="ok",
        text=layers[recipe.layers[0].name],
        provenance=provenance,
        layers=layers if len(layers) > 1 else {},
    )
