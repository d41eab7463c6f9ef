"""The log: one line per request, and what else there is to say. JSON for machines, plain on a terminal.

Lines hold ids of keys, never keys; prompts only if the settings say so.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from lens_serve.config import WatchSettings

__all__ = ["configure", "log_request", "note"]

_requests = logging.getLogger("lens_serve.requests")
_NOTES = "notes"
_PROMPTS = ("prompt", "negative_prompt", "rewritten_prompt")
_keeps_prompts = False


def configure(settings: WatchSettings, stream: TextIO | None = None) -> None:
    """Write the log of this process; calling it again replaces what it did.

    Args:
        settings: whether prompts may be told.
        stream: where to; by default, standard error.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Plain() if stream.isatty() else _Json())
    global _keeps_prompts
    _keeps_prompts = settings.log_prompts
    logger = logging.getLogger("lens_serve")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def note(scope: MutableMapping[str, Any], **facts: Any) -> None:
    """Remember facts of a request for its line in the log: model, size, steps, n, prompt.

    Prompts are forgotten here unless the settings say otherwise: who else listens to the log does not get them either.

    Args:
        scope: of ASGI; routes have it as `request.scope`.
        facts: by name.
    """
    if not _keeps_prompts:
        facts = {name: value for name, value in facts.items() if name not in _PROMPTS}
    scope.setdefault("state", {}).setdefault(_NOTES, {}).update(facts)


def log_request(scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
    """Write the line of a request that is over.

    Args:
        scope: of ASGI.
        status: of HTTP; 499 if the client went before the answer began.
        seconds: it took.
    """
    state = scope.get("state", {})
    facts = {
        "request": state.get("request_id"),
        "method": scope["method"],
        "route": getattr(scope.get("route"), "path", "other"),
        "status": status,
        "seconds": round(seconds, 4),
        "key": state.get("key_id"),
        **state.get(_NOTES, {}),
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    _requests.info("%s %s %d", facts["method"], facts["route"], status, extra={"facts": facts})


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


class _Json(logging.Formatter):
    """An object on a line; whatever is in a prompt cannot begin another line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Plain(logging.Formatter):
    """For people: the time, what happened, and the facts behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        facts = getattr(record, "facts", {})
        shown = {name: value for name, value in facts.items() if name not in ("method", "route", "status")}
        told = " ".join(f"{name}={json.dumps(value, default=str)}" for name, value in shown.items())
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{_time(record).astimezone():%H:%M:%S} {level}{record.getMessage()} {told}".rstrip()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text
