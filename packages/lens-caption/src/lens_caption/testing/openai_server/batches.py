"""The life of a batch: validated, worked on line by line, finished, expired or cancelled, all by the server's clock.

A batch is a small machine. `_due` says when it moves next and `_step` moves it; the store moves whatever is due, in the
order of time, so that one long turn of the clock ends where many short ones would.
"""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lens_caption.testing.openai_server.answers import error_body, usage_of
from lens_caption.testing.openai_server.faults import BROKEN, ERRORS
from lens_caption.testing.openai_server.model import Model, Refused
from lens_caption.testing.openai_server.schemas import BatchRequest, Line, first_fault

if TYPE_CHECKING:
    from lens_caption.testing.openai_server.clock import Clock
    from lens_caption.testing.openai_server.faults import Faults
    from lens_caption.testing.openai_server.files import FileStore, StoredFile

__all__ = ["Batch", "BatchSettings", "BatchStore"]

WINDOW_S = 24 * 3600
_ACTIVE = {"validating", "in_progress", "finalizing", "cancelling"}
_FAILING_SHARE = 0.3
_EXPIRING_SHARE = 0.5
_MAX_ERRORS = 100
_LATE_LOOKS = 2


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How batches behave.

    Args:
        validate_s: seconds of the server's clock in `validating`.
        process_s: seconds from the first to the last line; more than a day lets every batch expire.
        finalize_s: seconds in `finalizing`.
        cancel_s: seconds in `cancelling`.
        shuffle: whether results come in another order than the requests.
        max_requests: a batch with more lines fails.
        max_bytes: a larger file is refused.
        enqueued_tokens: the most input tokens of unfinished batches per model; a batch that would exceed it fails.
    """

    validate_s: float = 0.2
    process_s: float = 1.0
    finalize_s: float = 0.1
    cancel_s: float = 0.1
    shuffle: bool = True
    max_requests: int = 50_000
    max_bytes: int = 200_000_000
    enqueued_tokens: int | None = None


@dataclass(kw_only=True)
class Batch:
    """A batch and where it stands."""

    id: str
    request: BatchRequest
    file: StoredFile
    fault: str
    created_at: float
    status: str = "validating"
    stamps: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    model: str | None = None
    tokens: int = 0
    total: int = 0
    todo: list[tuple[int, int]] = field(default_factory=list)
    """Where in the file the lines are that wait for their turn: offset and length, the next one last."""
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    started_at: float = 0.0
    moved_at: float = 0.0
    stalls_at: int = -1
    """How many lines are left when it stalls."""
    usage: list[int] = field(default_factory=lambda: [0, 0, 0])
    output_file_id: str | None = None
    error_file_id: str | None = None
    looks: int = 0
    """How often it was looked at after its end."""

    @property
    def expires_at(self) -> float:
        """When the window closes."""
        return self.created_at + WINDOW_S

    def to_json(self) -> dict[str, Any]:
        """As `GET /v1/batches/{id}` says it."""
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        nothing = "" if self.fault == "empty-file-ids" and self.status not in _ACTIVE else None
        told = self.fault != "output-missing" and (self.fault != "output-late" or self.looks > _LATE_LOOKS)
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.request.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.request.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": (self.output_file_id if told else None) or nothing,
            "error_file_id": self.error_file_id or nothing,
            "created_at": int(self.created_at),
            **{f"{name}_at": self.stamps.get(name) for name in names},
            "expires_at": int(self.expires_at),
            "request_counts": {"total": self.total, "completed": len(self.done), "failed": len(self.failed)},
            "usage": usage_of(*self.usage),
            "metadata": self.request.metadata,
        }


class BatchStore:
    """All batches.

    Args:
        settings: how they behave.
        clock: that they live by.
        files: where their files are.
        model: that answers their lines.
        faults: what they meet.
    """

    def __init__(self, settings: BatchSettings, clock: Clock, files: FileStore, model: Model, faults: Faults):
        self.settings = settings
        self._clock, self._files, self._model, self._faults = clock, files, model, faults
        self._lock = threading.RLock()
        self._batches: dict[str, Batch] = {}
        self._active: dict[str, Batch] = {}
        clock.on_advance(self.advance)

    def create(self, request: BatchRequest) -> dict[str, Any]:
        """Begin a batch.

        Raises:
            KeyError: there is no such file.
            ValueError: the file is not for batches.
        """
        file = self._files.get(request.input_file_id)
        if file.purpose != "batch":
            raise ValueError(f"the purpose of {file.id} is {file.purpose!r}, not 'batch'")
        with self._lock:
            now = self._clock.now()
            batch = Batch(
                id=f"batch_{len(self._batches) + 1:06d}{file.sha256[:12]}",
                request=request,
                file=file,
                fault=self._faults.for_batch(file.sha256),
                created_at=now,
                moved_at=now,
            )
            self._batches[batch.id] = self._active[batch.id] = batch
            return batch.to_json()

    def get(self, batch_id: str) -> dict[str, Any]:
        """Raises `KeyError`."""
        with self._lock:
            batch = self._batches[batch_id]
            batch.looks += batch.status not in _ACTIVE
            return batch.to_json()

    def all(self) -> list[dict[str, Any]]:
        """The newest first."""
        with self._lock:
            return [batch.to_json() for batch in reversed(self._batches.values())]

    def cancel(self, batch_id: str) -> dict[str, Any]:
        """Raises `KeyError`; `ValueError` if it is over already."""
        with self._lock:
            batch = self._batches[batch_id]
            if batch.status not in {"validating", "in_progress", "finalizing"}:
                raise ValueError(f"Cannot cancel a batch with status '{batch.status}'.")
            self._enter(batch, "cancelling", self._clock.now())
            return batch.to_json()

    def busy(self) -> bool:
        """Whether a batch has something left to do."""
        return bool(self._active)

    def advance(self, steps: int | None = None) -> None:
        """Do what is due by now, or only its first so many steps."""
        while steps is None or steps > 0:
            with self._lock:
                batch = min(self._active.values(), key=self._due, default=None)
                if batch is None or self._due(batch) > self._clock.now():
                    return
                self._step(batch, self._due(batch))
            steps = None if steps is None else steps - 1

    def _due(self, batch: Batch) -> float:
        """When it moves next."""
        settings = self.settings
        if batch.status == "validating":
            return batch.moved_at + settings.validate_s
        if batch.status == "finalizing":
            return batch.moved_at + settings.finalize_s
        if batch.status == "cancelling":
            return batch.moved_at + settings.cancel_s
        if not batch.todo:
            return batch.moved_at
        if len(batch.todo) == batch.stalls_at:
            return batch.expires_at
        position = batch.total - len(batch.todo) + 1
        return min(batch.expires_at, batch.started_at + settings.process_s * position / batch.total)

    def _step(self, batch: Batch, now: float) -> None:
        if batch.status == "validating":
            self._validate(batch, now)
        elif batch.status == "cancelling":
            self._drop_rest(batch, "batch_cancelled", "This request was cancelled with its batch.")
            self._finish(batch, "cancelled", now)
        elif batch.status == "finalizing":
            self._finish(batch, "completed", now)
        elif not batch.todo:
            self._enter(batch, "finalizing", now)
        elif now >= batch.expires_at:
            message = "This request could not be executed before the completion window expired."
            self._drop_rest(batch, "batch_expired", message)
            self._finish(batch, "expired", now)
        else:
            batch.moved_at = now
            self._do(batch, self._line(batch, batch.todo.pop()))

    def _enter(self, batch: Batch, status: str, now: float) -> None:
        batch.status = status
        batch.moved_at = now
        batch.stamps[status] = int(now)
        if status not in _ACTIVE:
            self._active.pop(batch.id, None)

    def _finish(self, batch: Batch, status: str, now: float) -> None:
        """Write the files. Where no line came through there is no output file, and likewise for errors."""
        expires = batch.request.output_expires_after.seconds if batch.request.output_expires_after else None
        expires = 0 if batch.fault == "output-expired" else expires
        for lines, name in ((batch.done, "output"), (batch.failed, "error")):
            if lines:
                path = self._files.new_path()
                path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
                stored = self._files.add(path, f"{batch.id}_{name}.jsonl", "batch_output", expires)
                setattr(batch, f"{name}_file_id", stored.id)
        self._enter(batch, status, now)

    # --- validation ---

    def _validate(self, batch: Batch, now: float) -> None:
        lines = self._scan(batch)
        if batch.fault == "invalid":
            self._complain(batch, "invalid_json_line", 1, "This line is not parseable as valid JSON.")
        limit = self.settings.enqueued_tokens
        if not batch.errors and (limit is not None or batch.fault == "token-limit"):
            batch.tokens = sum(self._input_tokens(batch, place) for place in lines)
            others = (one for one in self._active.values() if one is not batch and one.model == batch.model)
            enqueued = batch.tokens + sum(one.tokens for one in others)
            if batch.fault == "token-limit" or enqueued > (limit or 0):
                message = (
                    f"Enqueued token limit reached for {batch.model}. Limit: {limit or 0} enqueued tokens. Please try "
                    "again once some in_progress batches have been completed."
                )
                self._complain(batch, "token_limit_exceeded", None, message)
        if batch.errors:
            batch.tokens = 0
            self._enter(batch, "failed", now)
            return
        batch.total = len(lines)
        if self.settings.shuffle:
            random.Random(f"{self._faults.seed} {batch.id}").shuffle(lines)
        batch.todo = lines[::-1]
        if batch.fault == "expired":
            batch.stalls_at = max(1, int(len(lines) * _EXPIRING_SHARE))
        batch.started_at = now
        self._enter(batch, "in_progress", now)

    def _scan(self, batch: Batch) -> list[tuple[int, int]]:
        """Where the lines of the input file are; what is wrong with them becomes errors of the batch."""
        places: list[tuple[int, int]] = []
        seen: set[str] = set()
        offset = 0
        with batch.file.path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                place = (offset, len(raw))
                offset += len(raw)
                if not raw.strip():
                    continue
                places.append(place)
                if len(batch.errors) < _MAX_ERRORS:
                    self._inspect(batch, number, raw, seen)
        if not places:
            self._complain(batch, "empty_file", None, "The input file is empty.")
        if len(places) > self.settings.max_requests:
            message = f"The batch contains {len(places)} requests; at most {self.settings.max_requests} are allowed."
            self._complain(batch, "too_many_tasks", None, message)
        return places

    def _inspect(self, batch: Batch, number: int, raw: bytes, seen: set[str]) -> None:
        try:
            line = Line.model_validate(json.loads(raw))
        except ValidationError as error:
            where, message, _ = first_fault(error)
            self._complain(batch, "invalid_request", number, message, where)
            return
        except ValueError:
            self._complain(batch, "invalid_json_line", number, "This line is not parseable as valid JSON.")
            return
        if line.custom_id in seen:
            message = f"The custom_id '{line.custom_id}' for this request is a duplicate of another request."
            self._complain(batch, "duplicate_custom_id", number, message, "custom_id")
        seen.add(line.custom_id)
        if line.url != batch.request.endpoint:
            message = f"The URL provided for this request, {line.url}, does not match the batch endpoint."
            self._complain(batch, "url_mismatch", number, message, "url")
        model = str(line.body.get("model"))
        batch.model = batch.model or model
        if model != batch.model:
            message = f"The provided model '{model}' does not match the batch's other requests: {batch.model}."
            self._complain(batch, "model_mismatch", number, message, "body.model")

    def _complain(self, batch: Batch, code: str, line: int | None, message: str, param: str | None = None) -> None:
        batch.errors.append({"code": code, "line": line, "message": message, "param": param})

    def _line(self, batch: Batch, place: tuple[int, int]) -> Line:
        with batch.file.path.open("rb") as stream:
            stream.seek(place[0])
            return Line.model_validate(json.loads(stream.read(place[1])))

    def _input_tokens(self, batch: Batch, place: tuple[int, int]) -> int:
        try:
            return self._model.read(batch.request.endpoint, self._line(batch, place).body).input_tokens
        except Refused:
            return 0

    # --- work ---

    def _do(self, batch: Batch, line: Line) -> None:
        """Answer one line."""
        unlucky = batch.fault == "all-failed" or (
            batch.fault == "partly-failed" and self._faults.share("line", line.custom_id) < _FAILING_SHARE
        )
        if unlucky:
            self._put_error(batch, line, *ERRORS["500"])
            return
        try:
            asked = self._model.read(batch.request.endpoint, line.body)
        except Refused as refused:
            self._put(batch, line, refused.status, refused.body)
            return
        fault = self._faults.for_request(asked.digest, asked.number)
        if fault in ERRORS or fault in BROKEN:
            # Connections do not break inside the provider; what would break one is an error there.
            self._put_error(batch, line, *ERRORS.get(fault, ERRORS["500"]))
            return
        body = self._model.answer(asked, fault, custom_id=line.custom_id, batch=batch.id)
        usage = body["usage"]
        details = usage.get("output_tokens_details") or usage["completion_tokens_details"]
        batch.usage[0] += usage.get("input_tokens", usage.get("prompt_tokens", 0))
        batch.usage[1] += usage.get("output_tokens", usage.get("completion_tokens", 0))
        batch.usage[2] += details["reasoning_tokens"]
        self._put(batch, line, 200, body)

    def _put_error(self, batch: Batch, line: Line, status: int, code: str, message: str) -> None:
        self._put(batch, line, status, error_body(code, message, "server_error" if status >= 500 else code))

    def _put(self, batch: Batch, line: Line, status: int, body: dict[str, Any]) -> None:
        lines = batch.done if status == 200 else batch.failed
        number = f"{batch.id[6:12]}_{len(batch.done) + len(batch.failed) + 1}"
        result = {
            "id": f"batch_req_{number}",
            "custom_id": line.custom_id,
            "response": {"status_code": status, "request_id": f"req_{number}", "body": body},
            "error": None,
        }
        lines.append(json.dumps(result, ensure_ascii=False))

    def _drop_rest(self, batch: Batch, code: str, message: str) -> None:
        for place in reversed(batch.todo):
            line = self._line(batch, place)
            result = {
                "id": f"batch_req_{batch.id[6:12]}_{len(batch.done) + len(batch.failed) + 1}",
                "custom_id": line.custom_id,
                "response": None,
                "error": {"code": code, "message": message},
            }
            batch.failed.append(json.dumps(result))
        batch.todo = []
