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
from itertools import islice
from typing import TYPE_CHECKING, Any

from lens_caption.engine.client import LONG, LostError, NotSentError, Reply
from lens_caption.engine.journal import BatchRow
from lens_caption.engine.lanes.batch_files import Chunk, Limits, close, fill, give_up, read_results
from lens_caption.engine.policy import fate_of_error, retry_after
from lens_core.errors import LensError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from lens_caption.engine.book import Book
    from lens_caption.engine.client import Client
    from lens_caption.engine.prepare import Preparer
    from lens_caption.engine.request import RequestCaptioner
    from lens_caption.engine.settings import BatchSettings
    from lens_caption.profiles import Profile
    from lens_core.contracts import ImageItem

__all__ = ["INTENT", "BatchLane"]

INTENT = "lens_intent"
"""The key in a batch's metadata under which our id stands."""

_OVER = {"completed", "expired", "cancelled", "failed"}
_CLOCKS_DIFFER_S = 3600
_LOOKS = 5
_LOOKS_AT_UPLOAD = 300
_MADE = {200, 201}


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
        self._limits = Limits.of(settings, profile)
        self._folder = folder
        self._asked: Counter[str] = Counter()
        self._in_vain: Counter[str] = Counter()

    async def reattach(self) -> None:
        """Find out about batches that a process which is gone had begun; call it before anything is sent."""
        for pattern in ("batch-*.jsonl", "*_file_id"):
            for file in self._folder.glob(pattern):
                file.unlink()
        unsure = [row for row in self._book.journal.open_batches() if not row.id]
        for row in unsure:
            found = await self._look_for(row)
            if found is None:
                give_up(self._book, row.intent)
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
            path = f"/batches/{row.id}"
            try:
                reply = await self._client.get(path)
            except (NotSentError, LostError):
                continue  # there is time
            if reply.status == 404:
                if not self._look_again(path):
                    again += self._close(row, {}, gone=f"the server knows no batch {row.id}")
            elif reply.status == 200 and isinstance(reply.json, dict):
                del self._in_vain[path]
                if reply.json.get("status") in _OVER:
                    again += await self._finish(row, reply.json)
                else:
                    counts = reply.json.get("request_counts") or {}
                    waiting += int(counts.get("total") or 0) - int(counts.get("completed") or 0)
            elif reply.status != 200 and fate_of_error(reply.status, reply.json)[0] == "refused-all":
                self._book.refused = fate_of_error(reply.status, reply.json)[1]
        self._book.waiting = waiting
        return again

    # Filling and submitting

    async def _submit(self, pending: deque[str], fetch: Callable[[str], ImageItem], preparer: Preparer) -> bool:
        file = self._folder / f"batch-{uuid.uuid4().hex[:8]}.jsonl"
        try:
            root = self._captioner.endpoint.lines_root
            chunk = await fill(file, pending, fetch, preparer, self._book, self._limits, root=root)
            if not chunk.rows or self._book.stopping():  # a stop in the midst: the next run fills it anew, and whole
                return False
            await self._create(file, chunk)
            return True
        except OSError as error:
            raise StorageError(f"{file} cannot be written: {error.strerror}") from error
        finally:
            file.unlink(missing_ok=True)

    async def _create(self, file: Path, chunk: Chunk) -> None:
        """Journal the intent, then tell the server."""
        book = self._book
        intent = uuid.uuid4().hex
        file_id = await self._upload(file)
        keep = self._captioner.endpoint.keep_files_s
        book.journal.intend(intent, chunk.rows)
        book.budget.reserve(chunk.reserved, requests=len(chunk.rows))
        body = json.dumps(
            {
                "input_file_id": file_id,
                "endpoint": self._captioner.endpoint.lines_root + chunk.path,
                "completion_window": "24h",
                "metadata": {INTENT: intent, "stage": book.context.name},
                **({"output_expires_after": {"anchor": "created_at", "seconds": keep}} if keep else {}),
            }
        ).encode()
        row = BatchRow(intent=intent, state="intended", id="", file=file_id, created=time.time())
        made: dict[str, Any] | None = None
        for pause in self._pauses():
            try:
                reply = await self._client.post("/batches", body, timeout=LONG)
            except NotSentError:
                await book.pause(pause)
                continue
            except LostError:
                reply = None
            if reply is not None and reply.status in _MADE and isinstance(reply.json, dict) and reply.json.get("id"):
                made = reply.json
                break
            # Whether it was made is not known, unless the server says no.
            fate, detail = (
                fate_of_error(reply.status, reply.json) if reply and reply.status not in _MADE else ("lost", "")
            )
            if fate in {"refused-all", "bad-image"}:
                give_up(book, intent)
                raise LensError(f"{self._captioner.endpoint.url} refuses the batch: {detail}")
            await book.pause(_longer(pause, reply) if reply else pause)
            made = await (self._find(row) if fate == "busy" else self._look_for(row))
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
        detail, keep = "", self._captioner.endpoint.keep_files_s
        ends = {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(keep)} if keep else {}
        for pause in self._pauses():
            try:
                reply = await self._client.upload("/files", file, {"purpose": "batch", **ends})
            except (NotSentError, LostError) as error:
                detail = str(error)  # an upload that was lost costs nothing: no batch names it
            else:
                made = reply.status in _MADE
                if made and isinstance(reply.json, dict) and reply.json.get("id"):
                    return await self._processed(reply.json)
                fate, detail = ("garbled", "no id") if made else fate_of_error(reply.status, reply.json)
                if fate in {"refused-all", "bad-image"}:
                    break
                pause = _longer(pause, reply)
            await self._book.pause(pause)
        raise LensError(f"{self._captioner.endpoint.url} does not take the file of a batch: {detail}")

    async def _processed(self, file: dict[str, Any]) -> str:
        """The id of an uploaded file, once it may be used: Azure looks at it first."""
        file_id = str(file["id"])
        for _ in range(_LOOKS_AT_UPLOAD):
            if file.get("status") not in {"pending", "running", "notRunning"}:
                break
            await asyncio.sleep(min(self._poll_s, 2.0))
            with contextlib.suppress(NotSentError, LostError):
                reply = await self._client.get(f"/files/{file_id}")
                file = reply.json if reply.status == 200 and isinstance(reply.json, dict) else file
        if file.get("status") in {"error", "failed"}:
            raise LensError(
                f"{self._captioner.endpoint.url} cannot use the file of a batch: "
                f"{file.get('status_details') or file.get('error') or 'no reason was given'}"
            )
        return file_id

    async def _look_for(self, row: BatchRow) -> dict[str, Any] | None:
        """Find it, looking several times: a request for which nobody waits any more may still arrive."""
        found = await self._find(row)
        for pause in islice(self._pauses(), _LOOKS):
            if found is not None:
                break
            await asyncio.sleep(pause)
            found = await self._find(row)
        return found

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

    # Collecting

    async def _finish(self, row: BatchRow, batch: dict[str, Any]) -> list[str]:
        """Fetch a batch's results and journal them; returns the images that are to be asked again."""
        answers: dict[str, dict[str, Any]] = {}
        lines, gone = Counter[str](), ""
        for name in ("error_file_id", "output_file_id"):  # an answer counts for more than an error
            if not batch.get(name):
                continue  # absent if every line failed, or none did; some servers give ""
            file, path = self._folder / f"{row.intent}.{name}", f"/files/{batch[name]}/content"
            try:
                try:
                    reply = await self._client.download(path, file)
                except (LostError, NotSentError):
                    return []  # next time
                if reply.status == 200:
                    found = read_results(file)
                    if found.damaged or not found.answers:  # a proxy's page, say: none would be bought again
                        if self._look_again(path):
                            return []
                        gone = f"the results of batch {row.id} cannot be read"
                    answers.update(found.answers)
                    lines[name] = len(found.answers)
                elif reply.status in {404, 410}:
                    if self._look_again(path):
                        return []
                    gone = f"the results of batch {row.id} are gone (HTTP {reply.status})"
                else:
                    return []
            finally:
                file.unlink(missing_ok=True)
        missing = int((batch.get("request_counts") or {}).get("completed") or 0) - lines["output_file_id"]
        if missing > 0 and not gone:
            if self._look_again(row.intent):
                return []
            gone = f"the results of batch {row.id} lack {missing} answers that it counts"
        if batch["status"] == "failed":
            self._explain(batch)
        again = self._close(row, answers, gone=gone)
        if row.file:
            with contextlib.suppress(NotSentError, LostError):  # it only takes room
                await self._client.delete(f"/files/{row.file}")
        return again

    def _look_again(self, what: str) -> bool:
        """Whether once is not enough to believe that it is lost: it is paid for, and a gateway may be wrong."""
        self._in_vain[what] += 1
        return self._in_vain[what] < _LOOKS

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
            self._limits.tokens = max(1, sum(tokens.values()), mine // 2)
            self._book.context.progress.warn(
                f"too many tokens wait in batches ({message}); trying with {self._limits.tokens} at once"
            )
        else:
            where = f" (line {errors[0]['line']})" if errors[0].get("line") else ""
            self._book.refused = f"the batch {batch.get('id')} failed: {code}: {message}{where}"

    def _close(self, row: BatchRow, answers: dict[str, dict[str, Any]], *, gone: str = "") -> list[str]:
        """Journal what became of a batch's requests; returns the images that are to be asked again."""
        facts = {"base_url": self._captioner.endpoint.url, "batch": row.id}
        return close(
            self._captioner,
            self._book,
            row,
            answers,
            asked=self._asked,
            rounds=self._rounds,
            lane="batch",
            facts=facts,
            gone=gone,
        )


def _longer(pause: float, reply: Reply) -> float:
    asked = retry_after(reply.headers)
    return pause if asked is None else max(pause, asked)
