"""What an answer means: a caption, or one of the ways in which there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lens_caption.captioners.answers import outcome_of_text
from lens_caption.engine.policy import filtered_for
from lens_caption.profiles import Usage
from lens_core.contracts import CaptionOutcome, Status

if TYPE_CHECKING:
    from lens_caption.prompts import Recipe

__all__ = ["outcome_of"]


def outcome_of(
    key: str, answer: Any, provenance: Mapping[str, str | int | float], recipe: Recipe
) -> tuple[CaptionOutcome, Usage | None]:
    """Read an answer of the chat or the responses API.

    Args:
        key: the image's key.
        answer: its JSON.
        provenance: what is known of the request; the answer's own facts are added.
        recipe: what was asked, and how an answer is read.

    Returns:
        the outcome, and what was billed; None if the answer does not say.
    """
    usage = None
    try:
        facts = dict(provenance) | _served(answer)
        usage = _usage(answer.get("usage"), str(answer.get("service_tier") or ""))
        if usage is not None:
            facts |= {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
            if usage.cached_input_tokens:
                facts["cached_input_tokens"] = usage.cached_input_tokens
        status, text, detail = _chat(answer) if "choices" in answer else _responses(answer)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        detail = f"the server's answer is none of the API ({type(error).__name__})"
        return CaptionOutcome(key=key, status="transport", detail=detail, provenance=dict(provenance)), usage
    if status != "ok":
        return CaptionOutcome(key=key, status=status, detail=detail, provenance=facts), usage
    return outcome_of_text(key, text, recipe, facts), usage


def _chat(answer: Mapping[str, Any]) -> tuple[Status, str, str]:
    if not answer["choices"]:
        return "transport", "", "the answer has no choices"
    choice = answer["choices"][0]
    if choice.get("finish_reason") == "content_filter":
        # Azure leaves the message out, and says what it filtered for.
        return "content-filter", "", _stopped(choice.get("content_filter_results"))
    text = _text(choice["message"].get("content"))
    refusal = choice["message"].get("refusal")
    if refusal:
        return "refusal", "", str(refusal)[:200]
    if choice.get("finish_reason") == "length":
        return _cut_off(text)
    return "ok", text, ""


def _responses(answer: Mapping[str, Any]) -> tuple[Status, str, str]:
    if answer["status"] == "failed":
        return "transport", "", str((answer.get("error") or {}).get("message") or "the response failed")[:200]
    parts = [part for item in answer["output"] or [] if item["type"] == "message" for part in item["content"]]
    refusals = [part["refusal"] for part in parts if part["type"] == "refusal"]
    text = "".join(_text(part["text"]) for part in parts if part["type"] == "output_text")
    if refusals:
        return "refusal", "", str(refusals[0])[:200]
    if answer["status"] == "incomplete":
        reason = (answer.get("incomplete_details") or {}).get("reason", "unknown")
        if reason == "content_filter":
            return "content-filter", "", _stopped(None)
        return _cut_off(text)
    if not parts and not answer["output"]:
        return "transport", "", "the answer has no output"
    return "ok", text, ""


def _stopped(results: Any) -> str:
    reason = filtered_for(results)
    return "the provider's content filter stopped the answer" + (f" ({reason})" if reason else "")


def _cut_off(text: str) -> tuple[Status, str, str]:
    if text.strip():
        return "truncated", "", "the answer was cut off at max_output_tokens"
    return "empty", "", "all of max_output_tokens went into reasoning; raise it or lower the reasoning effort"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):  # as some servers give it, in parts
        return "".join(_text(part["text"]) for part in value if part["type"] == "text")
    if not isinstance(value, str):
        raise TypeError("a text is expected")
    return value


def _usage(value: Any, tier: str) -> Usage | None:
    """The tokens that were billed, under the names of either API."""
    if not isinstance(value, Mapping):
        return None
    counts = {
        name: next((value[key] for key in keys if isinstance(value.get(key), int) and value[key] >= 0), None)
        for name, keys in (
            ("input_tokens", ("input_tokens", "prompt_tokens")),
            ("output_tokens", ("output_tokens", "completion_tokens")),
        )
    }
    if None in counts.values():
        return None
    details = value.get("input_tokens_details") or value.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    cached = cached if isinstance(cached, int) and cached > 0 else 0
    return Usage(**counts, cached_input_tokens=cached, tier=tier[:50])  # type: ignore[arg-type]


def _served(answer: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What the response says of itself: model, tier and id as served, not as asked for."""
    facts: dict[str, str | int | float] = {
        "served_model": str(answer.get("model") or "")[:200],
        "response_id": str(answer.get("id") or "")[:200],
    }
    if answer.get("service_tier"):
        facts["service_tier"] = str(answer["service_tier"])[:50]
    return facts
