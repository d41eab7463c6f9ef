"""Bodies of answers, as the two APIs shape them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Reply", "body_of", "error_body", "usage_of"]

_REFUSAL = "I can't describe this."


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model says, and what it cost, before an API shapes it.

    Args:
        id: without the prefix that the API gives it.
        created: seconds since 1970.
        model: as served.
        tier: as served.
        text: what it says.
        ending: "stop", "length" or "content_filter".
        refused: whether `text` gives way to a refusal.
        input_tokens: text and images.
        output_tokens: with reasoning.
        reasoning_tokens: those of the output that nobody sees.
        choices: False leaves the list of answers empty.
    """

    id: str
    created: int
    model: str
    tier: str
    text: str
    ending: str
    refused: bool
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    choices: bool = True


def body_of(api: str, reply: Reply) -> dict[str, Any]:
    """The body for "chat" or "responses"."""
    return _chat(reply) if api == "chat" else _responses(reply)


def usage_of(input_tokens: int, output_tokens: int, reasoning_tokens: int) -> dict[str, Any]:
    """The `usage` of a response or a batch."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": input_tokens + output_tokens,
    }


def error_body(
    code: str, message: str, kind: str = "invalid_request_error", param: str | None = None
) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _chat(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if reply.refused or reply.ending == "content_filter" else reply.text,
        "refusal": _REFUSAL if reply.refused else None,
        "annotations": [],
    }
    choice = {"index": 0, "message": message, "finish_reason": reply.ending, "logprobs": None}
    return {
        "id": f"chatcmpl-{reply.id}",
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "service_tier": reply.tier,
        "system_fingerprint": "fp_fake",
        "choices": [choice] if reply.choices else [],
        "usage": {
            "prompt_tokens": reply.input_tokens,
            "completion_tokens": reply.output_tokens,
            "total_tokens": reply.input_tokens + reply.output_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": reply.reasoning_tokens, "audio_tokens": 0},
        },
    }


def _responses(reply: Reply) -> dict[str, Any]:
    reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reply.ending)
    part: dict[str, Any] = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
    if reply.refused:
        part = {"type": "refusal", "refusal": _REFUSAL}
    output: list[dict[str, Any]] = []
    if reply.reasoning_tokens:
        output.append({"id": f"rs_{reply.id}", "type": "reasoning", "summary": []})
    # Where reasoning has used up everything there is no message at all.
    if reply.choices and (reply.text or reply.refused or not reason):
        status = "incomplete" if reason else "completed"
        output.append(
            {"id": f"msg_{reply.id}", "type": "message", "role": "assistant", "status": status, "content": [part]}
        )
    return {
        "id": f"resp_{reply.id}",
        "object": "response",
        "created_at": reply.created,
        "model": reply.model,
        "service_tier": reply.tier,
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "error": None,
        "instructions": None,
        "metadata": {},
        "output": output,
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": usage_of(reply.input_tokens, reply.output_tokens, reply.reasoning_tokens),
    }
