"""Many requests in one file, answered within a day at half the price: the lane `batch`.

A batch is journalled before the server hears of it, under an id, its *intent*, that stands in the batch's metadata at
the server. Whatever is killed or lost on the way, the server's list of batches tells whether it was made, so that a
batch is never made twice. Its answers go into the journal in one transaction; until then they can be fetched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens_caption.engine.book import Book, with_facts
from lens_caption.engine.budget import NOTHING, Amount
from lens_caption.engine.client import LostError, NotSentError, Reply
from lens_caption.engine.journal import AttemptRow, BatchRow, Settlement
from lens_caption.engine.lanes.sync import understand
from lens_caption.engine.policy import POLICIES, Fate, fate_of_error, retry_after
from lens_caption.engine.request import BadImage, PreparedRequest
from lens_core.contracts import CaptionOutcome, ImageItem
from lens_core.errors import LensError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from pathlib import Path

    from lens_caption.engine.client import Client
    from lens_caption.engine.prepare import Preparer
    from lens_caption.engine.request import RequestCaptioner
    from lens_caption.engine.settings import BatchSettings
    from lens_caption.profiles import Profile, Usage

__all__ = ["INTENT", "BatchLane"]

INTENT = "lens_intent"
"""The key in a batch's metadata under which our id stands."""

_OVER = {"completed", "expired", "cancelled", "failed"}
_MAX_REQUESTS, _MAX_BYTES = 50_000, 200_000_000
_CLOCKS_DIFFER_S = 3600
_LOOKS_AT_DAMAGE = 5


@dataclass
class _Chunk:
    """What will be one batch."""

    rows: list[tuple[str, str, int, Amount]] = field(default_factory=list)
    path: str = ""
    bytes: int = 0
    tokens: int = 0
    reserved: Amount = NOTHING


class BatchLane:
    """Fills, submits, watches and collects batches.

    Args:
        captioner: makes requests and reads answers.
        client: sends.
        book: keeps the accounts.
        settings: how to split and wait.
        profile: the model's limits; None if nothing is known of it.
        folder: for files on their way, on local disk.
    """

    def __init__(
        self,
        captioner: RequestCaptioner,
        client: Client,
        book: Book,
        settings: BatchSettings,
        profile: Profile | None,
        folder: Path,
    ):
        self._captioner = captioner
        self._client = client
        self._book = book
        self._poll_s = settings.poll_s
        self._rounds = settings.rounds
        limits = profile.limits if profile else None
        self._max_requests = settings.max_requests or (limits.batch_requests if limits else _MAX_REQUESTS)
        self._max_bytes = settings.max_bytes or (limits.batch_bytes if limits else _MAX_BYTES)
        self._queue_tokens = settings.enqueued_tokens or (limits.batch_queue_tokens if limits else None)
        self._folder = folder
        self._asked: Counter[str] = Counter()
        self._damaged: Counter[str] = Counter()

    async def reattach(self) -> None:
        """Find out about batches that a process which is gone had begun; call it before anything is sent."""
        for pattern in ("batch-*.jsonl", "*_file_id"):
            for file in self._folder.glob(pattern):
                file.unlink()
        unsure = [row for row in self._book.journal.open_batches() if not row.id]
        for row in unsure:
            found = await self._find(row)
            if found is None:
                # A request that was on its way when the process died may arrive only now.
                await asyncio.sleep(min(self._poll_s, 3.0))
                found = await self._find(row)
            if found is None:
                self._give_up(row.intent)
            else:
                self._book.context.progress.note(f"batch {found['id']} was made before the run was cut off; it goes on")
                self._book.journal.submitted(row.intent, id=found["id"], file=str(found.get("input_file_id") or ""))

    async def run(self, keys: Iterable[str], fetch: Callable[[str], ImageItem], preparer: Preparer) -> None:
        """Caption images: submit what fits, collect what is over, until everything is decided or the run stops."""
        pending = deque(keys)
        while not self._book.stopping():
            pending.extend(await self.collect())
            submitted = bool(pending) and await self._submit(pending, fetch, preparer)
            if not pending and not self._book.journal.open_batches():
                return
            if not submitted:
                await self._book.pause(self._poll_s)

    async def drain(self) -> None:
        """Collect the batches that are open, and submit no more."""
        while self._book.journal.open_batches() and not self._book.stopping():
            await self.collect()
            if self._book.journal.open_batches():
                await self._book.pause(self._poll_s)

    async def collect(self) -> list[str]:
        """Look at the open batches and journal those that are over; returns the images that are to be asked again."""
        again: list[str] = []
        waiting = 0
        for row in self._book.journal.open_batches():
            try:
                reply = await self._client.get(f"/batches/{row.id}")
            except (NotSentError, LostError):
                continue  # there is time
            if reply.status == 404:
                again += self._close(row, {}, gone=f"the server knows no batch {row.id}")
            elif reply.status == 200 and isinstance(reply.json, dict):
                if reply.json.get("status") in _OVER:
                    again += await self._finish(row, reply.json)
                else:
                    counts = reply.json.get("request_counts") or {}
                    waiting += int(counts.get("total") or 0) - int(counts.get("completed") or 0)
            elif reply.status != 200 and fate_of_error(reply.status, reply.json)[0] == "refused-all":
                self._book.refused = fate_of_error(reply.status, reply.json)[1]
        self._book.in_flight = waiting
        return again

    # Filling and submitting

    async def _submit(self, pending: deque[str], fetch: Callable[[str], ImageItem], preparer: Preparer) -> bool:
        file = self._folder / f"batch-{uuid.uuid4().hex[:8]}.jsonl"
        try:
            chunk = await self._fill(file, pending, fetch, preparer)
            if not chunk.rows:
                return False
            await self._create(file, chunk)
            return True
        finally:
            file.unlink(missing_ok=True)

    async def _fill(
        self, file: Path, pending: deque[str], fetch: Callable[[str], ImageItem], preparer: Preparer
    ) -> _Chunk:
        """Write requests until a limit is met; what did not fit stays pending."""
        book, chunk = self._book, _Chunk()
        queued = sum(
            attempt.input_tokens
            for row in book.journal.open_batches()
            for attempt in book.journal.attempts_of(row.intent).values()
        )
        with file.open("wb") as stream:
            async for made in _prepared(pending, fetch, preparer):
                if book.stopping():
                    pending.appendleft(made.key)
                    break
                if isinstance(made, BadImage):
                    decided = CaptionOutcome(key=made.key, status="bad-image", detail=made.detail)
                    book.journal.write([decided])
                    book.decide([decided])
                    continue
                line = _line(made)
                worst = book.budget.worst(made.input_tokens, made.max_output_tokens)
                tokens = queued + chunk.tokens + made.input_tokens
                full = (
                    len(chunk.rows) == self._max_requests
                    or (chunk.bytes + len(line) > self._max_bytes and chunk.rows)
                    or (self._queue_tokens is not None and tokens > self._queue_tokens and (queued or chunk.rows))
                )
                poor = not book.budget.fits(chunk.reserved + worst)
                if full or poor:
                    pending.appendleft(made.key)
                    if poor and not chunk.rows and not book.journal.open_batches():
                        book.exhausted = book.budget.obstacle(worst)
                    break
                stream.write(line)
                chunk.rows.append((made.key, made.hash, made.input_tokens, worst))
                chunk.path = made.path
                chunk.bytes += len(line)
                chunk.tokens += made.input_tokens
                chunk.reserved += worst
        return chunk

    async def _create(self, file: Path, chunk: _Chunk) -> None:
        """Journal the intent, then tell the server."""
        book = self._book
        intent = uuid.uuid4().hex
        file_id = await self._upload(file)
        book.journal.intend(intent, chunk.rows)
        book.budget.reserve(chunk.reserved, requests=len(chunk.rows))
        body = json.dumps(
            {
                "input_file_id": file_id,
                "endpoint": f"/v1{chunk.path}",
                "completion_window": "24h",
                "metadata": {INTENT: intent, "stage": book.context.name},
            }
        ).encode()
        row = BatchRow(intent=intent, state="intended", id="", file=file_id, created=time.time())
        made: dict[str, Any] | None = None
        for pause in self._pauses():
            try:
                reply = await self._client.post("/batches", body)
            except NotSentError:
                await book.pause(pause)
                continue
            except LostError:
                reply = None
            if reply is not None and reply.status == 200 and isinstance(reply.json, dict) and reply.json.get("id"):
                made = reply.json
                break
            # Whether it was made is not known, unless the server says no.
            fate, detail = fate_of_error(reply.status, reply.json) if reply and reply.status != 200 else ("lost", "")
            if fate in {"refused-all", "bad-image"}:
                self._give_up(intent)
                raise LensError(f"{self._captioner.endpoint.url} refuses the batch: {detail}")
            await book.pause(pause)
            made = await self._find(row)
            if made is not None:
                break
        if made is None:
            raise LensError(
                f"{self._captioner.endpoint.url} did not say whether it made a batch; the same command asks again"
            )
        book.journal.submitted(intent, id=str(made["id"]), file=file_id)
        for key, *_ in chunk.rows:
            self._asked[key] += 1
        book.context.progress.note(f"batch {made['id']} was made, of {len(chunk.rows)} images")

    async def _upload(self, file: Path) -> str:
        detail = ""
        for pause in self._pauses():
            try:
                reply = await self._client.upload("/files", file, {"purpose": "batch"})
            except (NotSentError, LostError) as error:
                detail = str(error)  # an upload that was lost costs nothing: no batch names it
            else:
                if reply.status == 200 and isinstance(reply.json, dict) and reply.json.get("id"):
                    return str(reply.json["id"])
                fate, detail = fate_of_error(reply.status, reply.json) if reply.status != 200 else ("garbled", "no id")
                if fate in {"refused-all", "bad-image"}:
                    break
                pause = _longer(pause, reply)
            await self._book.pause(pause)
        raise LensError(f"{self._captioner.endpoint.url} does not take the file of a batch: {detail}")

    async def _find(self, row: BatchRow) -> dict[str, Any] | None:
        """The server's batch of this intent, if there is one.

        Raises:
            LensError: the server cannot be asked, so that nothing is known.
        """
        after: dict[str, str | int] = {}
        while True:
            page = await self._list(after)
            for batch in page["data"]:
                if (batch.get("metadata") or {}).get(INTENT) == row.intent:
                    return dict(batch)
            # The newest come first; those made long before the intent are not it.
            old = page["data"] and (page["data"][-1].get("created_at") or 0) < row.created - _CLOCKS_DIFFER_S
            if not page.get("has_more") or not page["data"] or old:
                return None
            after = {"after": page["data"][-1]["id"]}

    async def _list(self, after: dict[str, str | int]) -> dict[str, Any]:
        detail = ""
        for pause in self._pauses():
            try:
                reply = await self._client.get("/batches", limit=100, **after)
                if reply.status == 200 and isinstance(reply.json, dict) and isinstance(reply.json.get("data"), list):
                    return reply.json
                detail = f"HTTP {reply.status}"
                pause = _longer(pause, reply)
            except (NotSentError, LostError) as error:
                detail = str(error)
            await asyncio.sleep(pause)
        raise LensError(f"{self._captioner.endpoint.url} does not list its batches: {detail}")

    def _pauses(self) -> Iterator[float]:
        """One before each further try."""
        for attempt in range(1, self._captioner.endpoint.max_attempts + 1):
            yield min(self._captioner.endpoint.max_wait_s, 0.5 * 2**attempt * (0.5 + random.random() / 2))

    def _give_up(self, intent: str) -> None:
        rows = self._book.journal.attempts_of(intent)
        self._book.journal.abandon(intent)
        for row in rows.values():
            self._book.budget.settle(row.reserved, NOTHING)

    # Collecting

    async def _finish(self, row: BatchRow, batch: dict[str, Any]) -> list[str]:
        """Fetch a batch's results and journal them; returns the images that are to be asked again."""
        answers: dict[str, dict[str, Any]] = {}
        gone = ""
        for name in ("error_file_id", "output_file_id"):  # an answer counts for more than an error
            if not batch.get(name):
                continue  # absent if every line failed, or none did; some servers give ""
            file = self._folder / f"{row.intent}.{name}"
            try:
                try:
                    reply = await self._client.download(f"/files/{batch[name]}/content", file)
                except (LostError, NotSentError):
                    return []  # next time
                if reply.status == 200:
                    found = _answers(file)
                    if found is None:  # a proxy's page, say: to take it for no answers would buy them again
                        self._damaged[row.intent] += 1
                        if self._damaged[row.intent] < _LOOKS_AT_DAMAGE:
                            return []
                        gone = f"the results of batch {row.id} cannot be read"
                    answers.update(found or {})
                elif reply.status in {404, 410}:
                    gone = f"the results of batch {row.id} are gone (HTTP {reply.status})"
                else:
                    return []
            finally:
                file.unlink(missing_ok=True)
        if batch["status"] == "failed":
            self._explain(batch)
        again = self._close(row, answers, gone=gone)
        if row.file:
            with contextlib.suppress(NotSentError, LostError):  # it only takes room
                await self._client.delete(f"/files/{row.file}")
        return again

    def _explain(self, batch: dict[str, Any]) -> None:
        """A batch that failed as a whole: wait for room in the queue, or stop with the reason."""
        errors = (batch.get("errors") or {}).get("data") or [{}]
        code, message = str(errors[0].get("code") or ""), str(errors[0].get("message") or "no reason was given")
        if "token_limit" in code:
            tokens = {
                row.id: sum(attempt.input_tokens for attempt in self._book.journal.attempts_of(row.intent).values())
                for row in self._book.journal.open_batches()
            }
            mine = tokens.pop(str(batch.get("id")), 0)
            self._queue_tokens = max(1, sum(tokens.values()), mine // 2)
            self._book.context.progress.warn(
                f"too many tokens wait in batches ({message}); trying with {self._queue_tokens} at once"
            )
        else:
            where = f" (line {errors[0]['line']})" if errors[0].get("line") else ""
            self._book.refused = f"the batch {batch.get('id')} failed: {code}: {message}{where}"

    def _close(self, row: BatchRow, answers: dict[str, dict[str, Any]], *, gone: str = "") -> list[str]:
        """Journal what became of every request of a batch, in one transaction."""
        book = self._book
        attempts = book.journal.attempts_of(row.intent)
        settlements: list[Settlement] = []
        decided: list[CaptionOutcome] = []
        again: list[str] = []
        for key, attempt in attempts.items():
            fate, outcome, usage = self._understand(key, answers.get(key), gone)
            settlement = book.settlement(attempt.id, fate, attempt.reserved, usage)
            settlements.append(settlement)
            # A batch's answer that was paid for and lost is not bought again behind anybody's back.
            final = not (POLICIES[fate].again and fate != "lost" and self._asked[key] < self._rounds)
            if POLICIES[fate].stops:
                book.refused = book.refused or outcome.detail
            elif final:
                decided.append(self._with_facts(outcome, row, attempt, settlement, answers.get(key)))
            else:
                again.append(key)
            if usage is not None:
                book.budget.learn(attempt.input_tokens, usage.input_tokens)
        book.journal.collect(row.intent, settlements, decided)
        for attempt, settlement in zip(attempts.values(), settlements, strict=True):
            book.budget.settle(attempt.reserved, settlement.cost)
        book.decide(decided)
        return again

    def _understand(
        self, key: str, answer: dict[str, Any] | None, gone: str
    ) -> tuple[Fate, CaptionOutcome, Usage | None]:
        if answer is None:
            fate: Fate = "lost" if gone else "expired"
            return (
                fate,
                CaptionOutcome(key=key, status="transport", detail=gone or "its batch ended before its turn"),
                None,
            )
        response = answer.get("response")
        if isinstance(response, dict) and isinstance(response.get("status_code"), int):
            return understand(self._captioner, key, response["status_code"], response.get("body"))
        error = answer.get("error") if isinstance(answer.get("error"), dict) else {}
        detail = f"{error.get('code') or 'error'}: {error.get('message') or 'no reason was given'}"  # type: ignore[union-attr]
        fate = "expired" if str(error.get("code")) in {"batch_expired", "batch_cancelled"} else "server-error"  # type: ignore[union-attr]
        return fate, CaptionOutcome(key=key, status="transport", detail=detail[:300]), None

    def _with_facts(
        self,
        outcome: CaptionOutcome,
        row: BatchRow,
        attempt: AttemptRow,
        settlement: Settlement,
        answer: dict[str, Any] | None,
    ) -> CaptionOutcome:
        facts: dict[str, str | int | float] = {
            "lane": "batch",
            "base_url": self._captioner.endpoint.url,
            "request_sha256": attempt.request[:16],
            "batch": row.id,
            "attempts": max(1, self._asked[outcome.key]),
        }
        request_id = ((answer or {}).get("response") or {}).get("request_id")
        if request_id:
            facts["request_id"] = str(request_id)[:100]
        if settlement.cost.usd is not None and settlement.cost.images:
            facts["cost_usd"] = str(settlement.cost.usd)
        return with_facts(outcome, facts)


async def _prepared(
    pending: deque[str], fetch: Callable[[str], ImageItem], preparer: Preparer
) -> AsyncIterator[PreparedRequest | BadImage]:
    """Requests of the pending images, in order, some ahead; those that are not taken stay pending."""
    ahead: deque[tuple[str, asyncio.Task[PreparedRequest | BadImage]]] = deque()
    try:
        while pending or ahead:
            while pending and len(ahead) <= 2 * preparer.width:
                key = pending.popleft()
                item = await asyncio.to_thread(fetch, key)
                ahead.append((key, asyncio.ensure_future(preparer(item))))
            key, task = ahead[0]
            made = await task
            ahead.popleft()
            yield made
    finally:
        for key, task in reversed(ahead):
            task.cancel()
            pending.appendleft(key)


def _line(request: PreparedRequest) -> bytes:
    """A line of a batch file around the very bytes that would be sent alone."""
    head = json.dumps({"custom_id": request.key, "method": "POST", "url": f"/v1{request.path}"})
    return head[:-1].encode() + b', "body": ' + request.body + b"}\n"


def _answers(file: Path) -> dict[str, dict[str, Any]] | None:
    """The lines of a result file by `custom_id`, in any order; None if it is empty, or a line is no result."""
    found: dict[str, dict[str, Any]] = {}
    with file.open("rb") as stream:
        for line in stream:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                found[str(value["custom_id"])] = value
            except (ValueError, RecursionError, LookupError, TypeError):
                return None
    return found or None


def _longer(pause: float, reply: Reply) -> float:
    asked = retry_after(reply.headers)
    return pause if asked is None else max(pause, asked)
