"""What may become of a request, and what follows: the one table that every lane goes by.

charge   "usage": what the answer says; "reserved": the whole worst case, because it may have been billed and nobody
         said so; "nothing": it never reached a model
again    whether this run asks again (transport that failed is asked again by the next run in any case)
stops    whether it would meet every other request too, so that the run ends
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lens_core.contracts import Status

__all__ = ["POLICIES", "Fate", "Policy", "fate_of_error", "filtered_for", "pause_before_next", "retry_after"]

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


POLICIES: Mapping[Fate, Policy] = {
    "ok": Policy(status="ok", charge="usage"),
    # The model declined; asking again costs again.
    "refusal": Policy(status="refusal", charge="usage"),
    # The provider stopped the answer.
    "content-filter": Policy(status="content-filter", charge="usage"),
    # Cut off at max_output_tokens.
    "truncated": Policy(status="truncated", charge="usage"),
    # No text; mostly, reasoning took all of it.
    "empty": Policy(status="empty", charge="usage"),
    # Not of the recipe's schema; not mended.
    "schema-invalid": Policy(status="schema-invalid", charge="usage"),
    # This image is refused, by us or by the server.
    "bad-image": Policy(status="bad-image", charge="nothing"),
    # 429: too fast, or no room now.
    "busy": Policy(status="transport", charge="nothing", again=True),
    # 409, or 5xx but for time-outs.
    "server-error": Policy(status="transport", charge="nothing", again=True),
    # No connection was made.
    "not-sent": Policy(status="transport", charge="nothing", again=True),
    # Its batch ended before its turn.
    "expired": Policy(status="transport", charge="nothing", again=True),
    # Sent, and no answer came; a gateway's time-out.
    "lost": Policy(status="transport", charge="reserved", again=True),
    # An answer that is not whole, or no API's.
    "garbled": Policy(status="transport", charge="reserved", again=True),
    # Billed, and nothing in it.
    "no-answer": Policy(status="transport", charge="usage", again=True),
    # The key, the model or the account.
    "refused-all": Policy(status="transport", charge="nothing", stops=True),
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
# A filter that read the request and refused it, by code or in words; Azure bills for having read it.
_MAY_BE_FILTERED = {400, 403, 422, 451}
_FILTERED = {"content_filter", "content_policy_violation", "moderation_blocked", "ResponsibleAIPolicyViolation"}
_FILTERED_IN_WORDS = re.compile(r"content.(filter|policy|management policy)|moderation|flagged|usage guidelines", re.I)
_OF_THE_ACCOUNT = re.compile(r"\b(account|organi[sz]ation|project|key)\b", re.I)
_FIRST_PAUSE_S = 0.5


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
    filtered = _FILTERED & {code, str(inner.get("code"))} or (
        _FILTERED_IN_WORDS.search(said) and not _OF_THE_ACCOUNT.search(said)
    )
    if filtered and status in _MAY_BE_FILTERED:
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


def pause_before_next(attempt: int, asked: float | None, longest: float) -> float:
    """Seconds between two tries: what the server asks for, but no less than a back-off that grows.

    Args:
        attempt: the number of the one that failed, from 1.
        asked: by the server; it may say 0.
        longest: that is waited at all.
    """
    return min(longest, max(asked or 0.0, _FIRST_PAUSE_S * 2.0**attempt * random.random()))
