"""Azure's dialect: its addresses, its key, its errors, and what its content filter says.

The newer API is OpenAI's below /openai/v1. The older one has a path for each deployment, files and batches beside them,
and wants an `api-version`; there, the lines of a batch name "/chat/completions".
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Azure", "POLICY_VIOLATION"]

_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
_OLDER = re.compile(r"/openai/(deployments/[^/]+/chat/completions|files|batches)(/.*)?")
_SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
_VIOLENT = {**_SAFE, "violence": {"filtered": True, "severity": "medium"}}
_CODES = {"model_not_found": "DeploymentNotFound", "rate_limit_exceeded": "429"}
_LOOKS = 2

POLICY_VIOLATION = {
    "status": 400,
    "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": _VIOLENT},
}
"""What an error of the content filter says beside its code and message."""


@dataclass(kw_only=True)
class Azure:
    """How the server speaks when it speaks as Azure does.

    Args:
        filters: numbers of images that the content filter refuses to let in.
    """

    filters: frozenset[int] = frozenset()
    _pending: dict[str, int] = field(default_factory=dict)

    def refusal(self, path: str, query: Mapping[str, str], headers: Mapping[str, str], key: str | None) -> Any:
        """Status and body for a request that does not even reach the API, or None."""
        if key is not None and not hmac.compare_digest(headers.get("api-key", "").encode(), key.encode()):
            return 401, _error("401", "Access denied: the subscription key is wrong, or the endpoint is another.")
        if path.startswith("/openai/v1/"):
            return None
        if not _OLDER.fullmatch(path) or not _VERSION.fullmatch(query.get("api-version", "")):
            return 404, _error("404", "Resource not found")
        return None

    def reworded(self, body: dict[str, Any]) -> dict[str, Any]:
        """An error, with the code that Azure has for it."""
        code = body["error"].get("code")
        return {"error": {**body["error"], "code": _CODES.get(code, code)}}

    def annotate(self, answer: dict[str, Any]) -> None:
        """Say what the filter thinks of prompt and answer, as chat does there; a filtered answer has no text."""
        if "choices" not in answer:
            return
        answer["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": _SAFE}]
        for choice in answer["choices"]:
            stopped = choice["finish_reason"] == "content_filter"
            choice["content_filter_results"] = _VIOLENT if stopped else _SAFE
            if stopped:
                del choice["message"]

    def uploaded(self, file: dict[str, Any]) -> dict[str, Any]:
        """A file that was just uploaded: it takes a while until it may be used."""
        self._pending[file["id"]] = _LOOKS
        return {**file, "status": "pending"}

    def looked_at(self, file: dict[str, Any]) -> dict[str, Any]:
        """The file as it is told of; being asked is what passes its time here."""
        looks = self._pending.get(file["id"], 0)
        if looks <= 1:
            self._pending.pop(file["id"], None)
            return file
        self._pending[file["id"]] = looks - 1
        return {**file, "status": "pending"}

    def is_pending(self, file_id: str) -> bool:
        """Whether the file may not be used yet."""
        return file_id in self._pending


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}
