"""What an answer means: a caption, or one of the ways in which there is none."""

from __future__ import annotations

import re
from typing import Any

from lens_core.contracts import CaptionOutcome, Status

__all__ = ["outcome_of"]

# A refusal in prose opens the answer; a caption may well contain "I can't" in quotation marks further on.
_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very )?sorry|sorry,|i (can['’]?t|cannot|am unable to|am not able to|won['’]?t) "
    r"(help|assist|provide|describe|identify|comply|process|view|see|fulfil)|unable to (describe|process|assist))",
    re.IGNORECASE,
)


def outcome_of(key: str, answer: Any, provenance: dict[str, str | int | float]) -> CaptionOutcome:
    """Read an answer of the chat or the responses API.

    Args:
        key: the image's key.
        answer: what the SDK returned; a `str` when the server sent something that is not JSON with status 200.
        provenance: what is known of the request; the answer's own facts are added.
    """
    if isinstance(answer, str) or not hasattr(answer, "model"):
        return CaptionOutcome(
            key=key,
            status="transport",
            detail="the server answered with something else than JSON",
            provenance=provenance,
        )
    facts = provenance | _served(answer)
    status, text, detail = _chat(answer) if hasattr(answer, "choices") else _responses(answer)
    text = text.strip()
    if status == "ok" and not text:
        status, detail = "empty", "the answer is empty"
    if status == "ok" and _REFUSAL.match(text):
        status, detail = "refusal", text[:200]
    return CaptionOutcome(key=key, status=status, text=text if status == "ok" else "", detail=detail, provenance=facts)


def _chat(answer: Any) -> tuple[Status, str, str]:
    if not answer.choices:
        return "transport", "", "the answer has no choices"
    choice = answer.choices[0]
    text = choice.message.content or ""
    refusal = getattr(choice.message, "refusal", None)
    if refusal:
        return "refusal", "", str(refusal)[:200]
    if choice.finish_reason == "content_filter":
        return "content-filter", "", "the provider's content filter stopped the answer"
    if choice.finish_reason == "length":
        return _cut_off(text)
    return "ok", text, ""


def _responses(answer: Any) -> tuple[Status, str, str]:
    parts = [part for item in answer.output or [] if item.type == "message" for part in item.content]
    refusals = [part.refusal for part in parts if part.type == "refusal"]
    text = "".join(part.text for part in parts if part.type == "output_text")
    if refusals:
        return "refusal", "", str(refusals[0])[:200]
    if answer.status == "incomplete":
        reason = answer.incomplete_details.reason if answer.incomplete_details else "unknown"
        if reason == "content_filter":
            return "content-filter", "", "the provider's content filter stopped the answer"
        return _cut_off(text)
    if answer.status == "failed":
        return "transport", "", str(answer.error.message if answer.error else "the response failed")[:200]
    return "ok", text, ""


def _cut_off(text: str) -> tuple[Status, str, str]:
    if text.strip():
        return "truncated", "", "the answer was cut off at max_output_tokens"
    return "empty", "", "all of max_output_tokens went into reasoning; raise it or lower the reasoning effort"


def _served(answer: Any) -> dict[str, str | int | float]:
    """What the response says of itself: model, tier, id and tokens as served, not as asked for."""
    facts: dict[str, str | int | float] = {"served_model": str(answer.model), "response_id": str(answer.id)}
    tier = getattr(answer, "service_tier", None)
    if tier:
        facts["service_tier"] = str(tier)
    usage = answer.usage
    for name, names in (
        ("input_tokens", ("input_tokens", "prompt_tokens")),
        ("output_tokens", ("output_tokens", "completion_tokens")),
    ):
        for attribute in names:
            value = getattr(usage, attribute, None)
            if isinstance(value, int):
                facts[name] = value
    return facts
