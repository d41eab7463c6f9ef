"""Requests in one file of JSON Lines, answers in another: what a batch at a server and one on this machine share.

A line of a request file holds `custom_id`, which is the image's key, `method`, `url` and `body`. A line of a result
file holds `custom_id` and a `response` with `status_code` and `body`, or an `error`. Answers come in any order.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens_caption.engine.book import Book, with_facts
from lens_caption.engine.budget import NOTHING, Amount
from lens_caption.engine.lanes.sync import understand
from lens_caption.engine.policy import POLICIES, Fate
from lens_caption.engine.request import PROFILE_LANES, BadImage, PreparedRequest
from lens_core.contracts import CaptionOutcome, ImageItem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from lens_caption.engine.journal import BatchRow, Settlement
    from lens_caption.engine.prepare import Preparer
    from lens_caption.engine.request import RequestCaptioner
    from lens_caption.engine.settings import BatchSettings, LaneName
    from lens_caption.profiles import Profile, Usage

__all__ = ["Chunk", "Limits", "Results", "close", "fill", "give_up", "read_results"]

_MAX_REQUESTS, _MAX_BYTES = 50_000, 200_000_000


@dataclass
class Chunk:
    """What was put into one request file."""

    rows: list[tuple[str, str, int, Amount]] = field(default_factory=list)
    path: str = ""
    bytes: int = 0
    tokens: int = 0
    reserved: Amount = NOTHING


@dataclass(kw_only=True)
class Limits:
    """What one file may hold, and how many input tokens may wait in all of them."""

    requests: int
    bytes: int
    tokens: int | None

    @classmethod
    def of(cls, settings: BatchSettings, profile: Profile | None) -> Limits:
        """Those of the settings; where they leave something open, those of the model's profile."""
        known = profile.limits if profile else None
        return cls(
            requests=settings.max_requests or (known.batch_requests if known else _MAX_REQUESTS),
            bytes=settings.max_bytes or (known.batch_bytes if known else _MAX_BYTES),
            tokens=settings.enqueued_tokens or (known.batch_queue_tokens if known else None),
        )


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a result file holds.

    Args:
        answers: its lines by `custom_id`; where one occurs twice, an answer counts for more than an error.
        damaged: how many lines are no results.
    """

    answers: dict[str, dict[str, Any]]
    damaged: int


async def fill(
    file: Path,
    pending: deque[str],
    fetch: Callable[[str], ImageItem],
    preparer: Preparer,
    book: Book,
    limits: Limits,
    *,
    root: str = "/v1",
) -> Chunk:
    """Write requests until a limit is met; what did not fit stays pending.

    Args:
        file: to be written.
        pending: keys of images, taken from the left.
        fetch: reads one.
        preparer: makes the requests.
        book: keeps the accounts.
        limits: of the file.
        root: what stands before the path in a line's `url`.
    """
    chunk = Chunk()
    queued = book.journal.waiting_tokens()
    with file.open("wb") as stream:
        async for made in _prepared(pending, fetch, preparer):
            if book.stopping():
                pending.appendleft(made.key)
                break
            if isinstance(made, BadImage):
                decided = CaptionOutcome(key=made.key, status="bad-image", detail=made.detail)
                book.journal.write([decided])
                book.count([decided])
                continue
            line = _line(made, root)
            worst = book.budget.worst(made.input_tokens, made.max_output_tokens)
            tokens = queued + chunk.tokens + made.input_tokens
            full = (
                len(chunk.rows) == limits.requests
                or (chunk.bytes + len(line) > limits.bytes and chunk.rows)
                or (limits.tokens is not None and tokens > limits.tokens and (queued or chunk.rows))
            )
            poor = not book.budget.fits(chunk.reserved + worst)
            if full or poor:
                pending.appendleft(made.key)
                if poor and not chunk.rows and not book.journal.waiting()[1]:
                    book.exhausted = book.budget.obstacle(worst)
                break
            stream.write(line)
            chunk.rows.append((made.key, made.hash, made.input_tokens, worst))
            chunk.path = made.path
            chunk.bytes += len(line)
            chunk.tokens += made.input_tokens
            chunk.reserved += worst
    return chunk


def read_results(file: Path) -> Results:
    """Read a result file, whatever became of it: half-written, with a proxy's page in it, or empty."""
    answers: dict[str, dict[str, Any]] = {}
    damaged = 0
    with file.open("rb") as stream:
        for raw in stream:
            if not raw.strip():
                continue
            try:
                value = json.loads(raw)
                key = str(value["custom_id"])
            except (ValueError, RecursionError, LookupError, TypeError):
                damaged += 1
                continue
            if key not in answers or not _is_answer(answers[key]) or _is_answer(value):
                answers[key] = value
    return Results(answers=answers, damaged=damaged)


def close(
    captioner: RequestCaptioner,
    book: Book,
    row: BatchRow,
    answers: Mapping[str, dict[str, Any]],
    *,
    asked: Mapping[str, int],
    rounds: int,
    lane: LaneName,
    facts: Mapping[str, str],
    gone: str = "",
) -> list[str]:
    """Journal what became of every request of a file, in one transaction.

    Args:
        captioner: reads the answers.
        book: keeps the accounts.
        row: of the file, in the journal.
        answers: by image key.
        asked: how often each image was asked about.
        rounds: how often it may be.
        lane: of the file, whatever that of this run is.
        facts: for the provenance.
        gone: why answers that were paid for cannot be had; "" where an absent one was never made.

    Returns:
        the images that are to be asked about again.
    """
    attempts = book.journal.attempts_of(row.intent)
    settlements: list[Settlement] = []
    decided: list[CaptionOutcome] = []
    again: list[str] = []
    for key, attempt in attempts.items():
        fate, outcome, usage = _understand(captioner, key, answers.get(key), gone)
        settlement = book.settlement(attempt.id, fate, attempt.reserved, usage, PROFILE_LANES[lane])
        settlements.append(settlement)
        # An answer that was paid for and lost is not bought again behind anybody's back.
        final = not (POLICIES[fate].again and fate != "lost" and asked.get(key, 0) < rounds)
        if POLICIES[fate].stops:
            book.refused = book.refused or outcome.detail
        elif final:
            more: dict[str, str | int | float] = {
                "lane": lane,
                **facts,
                "request_sha256": attempt.request[:16],
                "attempts": max(1, asked.get(key, 0)),
            }
            if request_id := _response(answers.get(key)).get("request_id"):
                more["request_id"] = str(request_id)[:100]
            if settlement.cost.usd is not None and settlement.cost.images:
                more["cost_usd"] = str(settlement.cost.usd)
            decided.append(with_facts(outcome, more))
        else:
            again.append(key)
        if usage is not None:
            book.budget.learn(attempt.input_tokens, usage.input_tokens)
    book.journal.collect(row.intent, settlements, book.decide(decided))
    for attempt, settlement in zip(attempts.values(), settlements, strict=True):
        book.budget.settle(attempt.reserved, settlement.cost)
    if decided:
        book.conclude()
    return again


def give_up(book: Book, intent: str) -> None:
    """Nobody will answer these requests: nothing was spent on them."""
    rows = book.journal.attempts_of(intent)
    book.journal.abandon(intent)
    for row in rows.values():
        book.budget.settle(row.reserved, NOTHING)


def _understand(
    captioner: RequestCaptioner, key: str, answer: dict[str, Any] | None, gone: str
) -> tuple[Fate, CaptionOutcome, Usage | None]:
    fate: Fate
    if answer is None:
        fate = "lost" if gone else "expired"
        outcome = CaptionOutcome(key=key, status="transport", detail=gone or "its batch ended before its turn")
        return fate, outcome, None
    response, error = _response(answer), answer.get("error")
    if isinstance(response.get("status_code"), int):
        body = response.get("body")
        if body is None and error is not None:  # as vLLM does, whose error may be a text
            body = error if isinstance(error, dict) else {"error": {"message": str(error)}}
        fate, outcome, usage = understand(captioner, key, response["status_code"], body)
        # A batch bills for answers, and no gateway stands within it: a time-out there is an error like others.
        return ("server-error" if fate == "lost" else fate), outcome, usage
    error = error if isinstance(error, dict) else {}
    detail = f"{error.get('code') or 'error'}: {error.get('message') or 'no reason was given'}"
    fate = "expired" if str(error.get("code")) in {"batch_expired", "batch_cancelled"} else "server-error"
    return fate, CaptionOutcome(key=key, status="transport", detail=detail[:300]), None


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


def _line(request: PreparedRequest, root: str) -> bytes:
    """A line of a request file around the very bytes that would be sent alone."""
    head = json.dumps({"custom_id": request.key, "method": "POST", "url": f"{root}{request.path}"})
    return head[:-1].encode() + b', "body": ' + request.body + b"}\n"


def _response(line: Mapping[str, Any] | None) -> dict[str, Any]:
    response = line.get("response") if line else None
    return response if isinstance(response, dict) else {}


def _is_answer(line: Mapping[str, Any]) -> bool:
    return _response(line).get("status_code") == 200
