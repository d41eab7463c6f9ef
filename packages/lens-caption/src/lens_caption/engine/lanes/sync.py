"""One request, one answer: the lanes `sync` and `flex`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lens_caption.engine.book import Book, with_facts
from lens_caption.engine.budget import Amount, BudgetExhausted
from lens_caption.engine.client import LostError, NotSentError
from lens_caption.engine.policy import POLICIES, Fate, fate_of_error, pause_before_next, retry_after
from lens_caption.engine.request import PROFILE_LANES, BadImage, PreparedRequest
from lens_core.contracts import CaptionOutcome, ImageItem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from lens_caption.engine.client import Client
    from lens_caption.engine.limiter import Limiter
    from lens_caption.engine.prepare import Preparer
    from lens_caption.engine.request import RequestCaptioner
    from lens_caption.engine.settings import LaneName
    from lens_caption.profiles import Usage

__all__ = ["Sender", "run_sync", "understand"]


def understand(
    captioner: RequestCaptioner, key: str, status: int, body: Any
) -> tuple[Fate, CaptionOutcome, Usage | None]:
    """What an HTTP answer means, alone or in a batch.

    Args:
        captioner: who asked.
        key: of the image.
        status: of HTTP.
        body: the answer's JSON; None if it had none.
    """
    if status != 200:
        fate, detail = fate_of_error(status, body)
        return fate, CaptionOutcome(key=key, status=POLICIES[fate].status, detail=detail), None
    if not isinstance(body, dict):
        return "garbled", _transport(key, "the server answered with something else than JSON"), None
    outcome, usage = captioner.read(key, body)
    if outcome.status != "transport":
        return outcome.status, outcome, usage
    return ("garbled" if usage is None else "no-answer"), outcome, usage


class Sender:
    """Sends a request until it is decided what became of it.

    Args:
        captioner: reads the answers.
        client: sends.
        limiter: says when.
        book: keeps the accounts.
        lane: `sync` or `flex`.
    """

    def __init__(self, captioner: RequestCaptioner, client: Client, limiter: Limiter, book: Book, lane: LaneName):
        self._captioner = captioner
        self._client = client
        self._limiter = limiter
        self._book = book
        self._lane = lane
        self.answered = asyncio.Event()

    async def obtain(self, request: PreparedRequest) -> None:
        """Send until it is decided what became of an image, or the run stops."""
        endpoint, book = self._captioner.endpoint, self._book
        outcome: CaptionOutcome | None = None
        for attempt in range(1, endpoint.max_attempts + 1):
            reserved = book.budget.worst(request.input_tokens, request.max_output_tokens)
            try:
                if not await book.budget.wait_for(reserved, book.stopping):
                    break
            except BudgetExhausted as error:
                book.exhausted = book.exhausted or str(error)
                break
            if not await self._limiter.acquire(request.most_tokens, book.stopping):
                book.budget.settle(reserved, Amount())
                break
            fate, outcome, pause = await self._attempt(request, reserved, attempt)
            if POLICIES[fate].stops:
                book.refused = book.refused or outcome.detail
                return
            if not POLICIES[fate].again:
                return
            if attempt < endpoint.max_attempts:
                await book.pause(pause_before_next(attempt, pause, endpoint.max_wait_s))
            if book.stopping():
                break
        if outcome is not None:
            book.journal.write(book.decide([outcome]))

    async def _attempt(
        self, request: PreparedRequest, reserved: Amount, attempt: int
    ) -> tuple[Fate, CaptionOutcome, float | None]:
        """Send once; what is decided is journalled together with what it cost."""
        book = self._book
        number = book.journal.begin(request.key, request.hash, request.input_tokens, reserved)
        book.in_flight += 1
        facts: dict[str, str | int | float] = {
            "lane": PROFILE_LANES[self._lane],
            "base_url": self._captioner.endpoint.url,
            "request_sha256": request.hash[:16],
            "attempts": attempt,
        }
        pause, usage = None, None
        try:
            reply = await self._client.post(
                request.path, request.body, {"X-Client-Request-Id": f"{request.key}-{number}"}
            )
        except NotSentError as error:
            fate, outcome = self._failed("not-sent", request.key, error)
        except LostError as error:
            fate, outcome = self._failed("lost", request.key, error)
        else:
            fate, outcome, usage = understand(self._captioner, request.key, reply.status, reply.json)
            self._limiter.heed(reply.headers, request.most_tokens)
            pause = retry_after(reply.headers) if fate in {"busy", "server-error", "lost"} else None
            no_room = self._lane == "flex" and "resource" in outcome.detail.lower()  # for this request, at this price
            if fate == "busy" and pause is not None and not no_room:
                self._limiter.hold(min(pause, self._captioner.endpoint.max_wait_s))
            if request_id := reply.headers.get("x-request-id"):
                facts["request_id"] = request_id[:100]
        finally:
            book.in_flight -= 1
            self.answered.set()
        settlement = book.settlement(number, fate, reserved, usage, PROFILE_LANES[self._lane])
        if settlement.cost.usd is not None and settlement.cost.images:
            facts["cost_usd"] = str(settlement.cost.usd)
        outcome = with_facts(outcome, facts)
        decided = not (POLICIES[fate].again or POLICIES[fate].stops)
        book.journal.settle([settlement], book.decide([outcome]) if decided else [])
        book.budget.settle(reserved, settlement.cost)
        if usage is not None:
            book.budget.learn(request.input_tokens, usage.input_tokens)
            self._limiter.refund(request.most_tokens - usage.input_tokens - usage.output_tokens)
        return fate, outcome, pause

    def _failed(self, fate: Fate, key: str, error: Exception) -> tuple[Fate, CaptionOutcome]:
        return fate, _transport(key, str(error))


async def run_sync(
    fetch: Callable[[str], ImageItem],
    sender: Sender,
    preparer: Preparer,
    book: Book,
    width: int,
    keys: Iterable[str],
    *,
    beside: Coroutine[Any, Any, None],
) -> None:
    """Caption images, several at a time; memory holds as many as are prepared or in flight, however many there are.

    Args:
        fetch: reads an image.
        sender: sends.
        preparer: makes the requests.
        book: keeps the accounts.
        width: requests in flight.
        keys: of the images.
        beside: what goes on meanwhile; requests may wait for what it leaves of the budget.
    """
    queue: asyncio.Queue[PreparedRequest | None] = asyncio.Queue(maxsize=2 * preparer.width)
    source, turn = iter(keys), asyncio.Lock()

    async def read() -> ImageItem | None:
        async with turn:  # the files are read one after the other
            key = None if book.stopping() else next(source, None)
            return None if key is None else await asyncio.to_thread(fetch, key)

    async def prepare() -> None:
        while (item := await read()) is not None:
            made = await preparer(item)
            if isinstance(made, BadImage):
                decided = CaptionOutcome(key=made.key, status="bad-image", detail=made.detail)
                book.journal.write([decided])
                book.count([decided])
            else:
                await queue.put(made)

    async def send(place: int) -> None:
        if place:
            await sender.answered.wait()  # the first answer tells the limits, and how tokens are counted
        while (request := await queue.get()) is not None:
            if book.stopping():
                continue
            await sender.obtain(request)

    async def all_at_once() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(beside)
            preparing = [group.create_task(prepare()) for _ in range(preparer.width + 1)]
            for place in range(width):
                group.create_task(send(place))
            await asyncio.wait(preparing)
            sender.answered.set()
            for _ in range(width):
                await queue.put(None)

    try:
        await all_at_once()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _transport(key: str, detail: str) -> CaptionOutcome:
    return CaptionOutcome(key=key, status="transport", detail=detail or "no attempt was made")
