"""What may become of a request, and what follows: the one table that every lane goes by.

charge   "usage": what the answer says; "reserved": the whole worst case, because it may have been billed and nobody
         said so; "nothing": it never reached a model
again    whether this run asks again (transport that failed is asked again by the next run in any case)
stops    whether it would meet every other request too, so that the run ends
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lens_core.contracts import Status

__all__ = ["POLICIES", "Fate", "Policy", "fate_of_error", "filtered_for", "retry_after"]

Fate = Literal[
    "ok",
    "refusal",
    "content-filter",
    "truncated",
    "empty",
    "schema-invalid",
    "bad-image",
    "busy",
    "server-error",
    "not-sent",
    "expired",
    "lost",
    "garbled",
    "no-answer",
    "refused-all",
]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """One row; see the module."""

    status: Status
    charge: Literal["usage", "reserved", "nothing"]
    again: bool = False
    stops: bool = False
    meaning: str


POLICIES: Mapping[Fate, Policy] = {
    "ok": Policy(status="ok", charge="usage", meaning="a caption"),
    "refusal": Policy(status="refusal", charge="usage", meaning="the model declined; asking again costs again"),
    "content-filter": Policy(status="content-filter", charge="usage", meaning="the provider stopped the answer"),
    "truncated": Policy(status="truncated", charge="usage", meaning="cut off at max_output_tokens"),
    "empty": Policy(status="empty", charge="usage", meaning="no text; mostly, reasoning took all of it"),
    "schema-invalid": Policy(status="schema-invalid", charge="usage", meaning="not of the recipe's schema; not mended"),
    "bad-image": Policy(status="bad-image", charge="nothing", meaning="this image is refused, by us or by the server"),
    "busy": Policy(status="transport", charge="nothing", again=True, meaning="429: too fast, or no room now"),
    "server-error": Policy(status="transport", charge="nothing", again=True, meaning="409, or 5xx but for time-outs"),
    "not-sent": Policy(status="transport", charge="nothing", again=True, meaning="no connection was made"),
    "expired": Policy(status="transport", charge="nothing", again=True, meaning="its batch ended before its turn"),
    "lost": Policy(
        status="transport", charge="reserved", again=True, meaning="sent, and no answer came; a gateway's time-out"
    ),
    "garbled": Policy(
        status="transport", charge="reserved", again=True, meaning="an answer that is not whole, or no API's"
    ),
    "no-answer": Policy(status="transport", charge="usage", again=True, meaning="billed, and nothing in it"),
    "refused-all": Policy(
        status="transport", charge="nothing", stops=True, meaning="the key, the model or the account"
    ),
}

# A gateway gave up waiting: the model behind it may have gone on, and billed. 524 is Cloudflare's.
_TIMED_OUT = {408, 504, 524}
_OF_THIS_REQUEST = {400, 413, 415, 422}
# Such a 400 is about how every request is made; to call it the image's fault would brand all of them.
_OF_EVERY_REQUEST = {
    "unknown_parameter",
    "unsupported_parameter",
    "unsupported_value",
    "missing_required_parameter",
    "invalid_json_schema",
    "model_not_found",
    "billing_hard_limit_reached",
    "OperationNotSupported",
}
# A filter that read the request and refused it; Azure bills for having read it.
_FILTERED = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}


def fate_of_error(status: int, body: Any) -> tuple[Fate, str]:
    """What an HTTP status other than 200 means, and one line about it.

    Args:
        status: of HTTP.
        body: the answer's JSON, or None if it had none.
    """
    error = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        error = body if isinstance(body, Mapping) else {"message": error} if isinstance(error, str) else {}
    code = str(error.get("code") or error.get("type") or "")
    said = " ".join(str(error.get("message") or error.get("detail") or code or "no reason was given").split())[:300]
    detail = f"HTTP {status}: {said}"
    if status == 429:
        return ("refused-all" if "insufficient_quota" in code else "busy"), detail
    if status in _TIMED_OUT:
        return "lost", detail
    if status == 409 or status >= 500:
        return "server-error", detail
    inner = error.get("innererror")
    inner = inner if isinstance(inner, Mapping) else {}
    if status == 400 and _FILTERED & {code, str(inner.get("code"))}:
        # Azure's message is the same for all: which filter it was says more.
        reason = filtered_for(inner.get("content_filter_result"))
        return "content-filter", f"HTTP {status}: the provider's content filter ({reason})" if reason else detail
    if status in _OF_THIS_REQUEST and code not in _OF_EVERY_REQUEST:
        return "bad-image", detail
    return "refused-all", detail


def filtered_for(results: Any) -> str:
    """What Azure's content filter objected to, such as "violence: medium"; "" if it does not say."""
    if not isinstance(results, Mapping):
        return ""
    guilty = {name: part for name, part in results.items() if isinstance(part, Mapping) and part.get("filtered")}
    return ", ".join(f"{name}: {part.get('severity') or 'detected'}" for name, part in guilty.items())[:200]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, from `retry-after-ms` or `Retry-After`; None if it does not say."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue  # absent, or a date: the usual back-off does
        if 0 <= seconds < float("inf"):
            return seconds
    return None
