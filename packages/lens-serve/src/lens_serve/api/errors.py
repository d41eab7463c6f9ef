"""What goes wrong, as OpenAI's clients understand it: one status, one body `{"error": {…}}`, headers that say when to
come again.

Everything that a request can fail of becomes an `ApiError` here, so that statuses are decided in one place.
"""

from __future__ import annotations

import difflib
import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import Response
from pydantic import BaseModel, Field

from lens_serve.admission.admission import Refused
from lens_serve.engine.events import EngineError
from lens_serve.images.sign import SignError
from lens_serve.images.store import StoreError
from lens_serve.images.upload import UploadError
from lens_serve.safety.gate import CheckFailed, Unsafe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ApiError",
    "ErrorAnswer",
    "ErrorBody",
    "answer",
    "answers",
    "from_validation",
    "suggestion",
    "to_api_error",
]

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_NEVER_AGAIN = {"x-should-retry": "false"}
"""OpenAI's clients repeat a request on 409, 429 and 5xx by themselves, unless they are told that it is no use."""

_ENGINE = {
    "invalid": (400, "invalid_value", {}),
    "deadline": (504, "deadline", _NEVER_AGAIN),
    "memory": (500, "out_of_memory", _NEVER_AGAIN),
    "not-finite": (500, "not_finite", _NEVER_AGAIN),
    "lost": (500, "engine_lost", _NEVER_AGAIN),
    "internal": (500, "internal", {}),
    "unavailable": (503, "unavailable", {"retry-after": "5"}),
}
"""Status, code and headers for each reason of an engine. Drawing is deterministic: most of them would happen again."""


class ErrorBody(BaseModel):
    """What was wrong."""

    message: str = Field(description="For people.")
    type: str = Field(description="What kind of error: `invalid_request_error`, `rate_limit_error`, `server_error` …")
    param: str | None = Field(description="Which parameter of the request, if one.")
    code: str = Field(description="For programs.")


class ErrorAnswer(BaseModel):
    """An answer that is no image."""

    error: ErrorBody


class ApiError(Exception):
    """A request that gets an answer other than the one it asked for.

    Args:
        status: of HTTP.
        message: for people; nothing of the server's insides.
        code: for programs.
        param: which parameter of the request is to blame, as `lens.steps`.
        headers: further ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's name for this kind of error."""
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def answer(error: ApiError) -> Response:
    """The error as an HTTP answer, in ASCII: what a client calls things need not be valid Unicode."""
    return Response(json.dumps(error.body), error.status, headers=error.headers, media_type="application/json")


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: which errors it may give."""
    return {status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase} for status in statuses}


def to_api_error(error: Exception) -> ApiError | None:
    """What a client is told of an exception that was foreseen; None for any other."""
    match error:
        case ApiError():
            return error
        case Refused():
            return ApiError(error.status, error.message, code=error.code, headers=_when_to_come_again(error))
        case CheckFailed():
            return ApiError(500, _sentence(str(error)), code="check_failed")
        case Unsafe():
            return ApiError(403, _sentence(str(error)), code="content_policy_violation", param="prompt")
        case UploadError():
            return ApiError(400, _sentence(str(error)), code="invalid_image", param="image")
        case StoreError():
            return ApiError(500, _sentence(str(error)), code="storage_failed", headers=_NEVER_AGAIN)
        case SignError():
            return ApiError(500, _sentence(str(error)), code="signing_failed", headers=_NEVER_AGAIN)
        case EngineError():
            status, code, headers = _ENGINE[error.reason]
            return ApiError(status, _sentence(error.message), code=code, headers=headers)
    return None


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first thing that pydantic found wrong with a request, with its place; values are not repeated."""
    first = min(errors, key=lambda error: error["type"] == "missing")
    where = [part for part in first["loc"][1:] if isinstance(part, str)]
    if first["type"] == "json_invalid" and len(where) == 0:
        return ApiError(400, "The body is not valid JSON.", code="invalid_json")
    if not where:
        message = "The body has to be an object; send it as `content-type: application/json`."
        return ApiError(400, message, code="invalid_value")
    param = ".".join(where)
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
    if first["type"] == "unknown_parameter":
        message = f"Unknown parameter: '{param}'. {first['msg']}"
        return ApiError(400, message, code="unknown_parameter", param=param)
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"Invalid '{param}': {message}.", code="invalid_value", param=param)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")


def suggestion(name: str, names: Sequence[str]) -> str:
    """A sentence that helps on from a name that is not known."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(names)}."


def _when_to_come_again(refused: Refused) -> dict[str, str]:
    headers = {"x-should-retry": "true" if refused.retry else "false"}
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(refused.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(refused.retry_after_s * 1000))
    if refused.ticket is not None:
        headers["x-lens-ticket"] = refused.ticket
    return headers
