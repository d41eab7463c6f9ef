"""One run through the lanes: what a dead process left is sorted out, then everything undecided is bought."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from functools import partial
from typing import TYPE_CHECKING

from lens_caption.engine.book import PATIENCE, Book, Heard
from lens_caption.engine.budget import NOTHING, Budget
from lens_caption.engine.client import Client
from lens_caption.engine.lanes.batch import BatchLane
from lens_caption.engine.lanes.files import FilesLane
from lens_caption.engine.lanes.sync import Sender, run_sync
from lens_caption.engine.limiter import Limiter
from lens_caption.engine.prepare import Preparer
from lens_caption.engine.request import PROFILE_LANES
from lens_core.errors import ConfigError, LensError, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lens_caption.engine.journal import Journal
    from lens_caption.engine.request import RequestCaptioner
    from lens_caption.engine.settings import EngineSettings
    from lens_caption.profiles import Profile
    from lens_caption.scale.allowance import Allowance
    from lens_core.contracts import ImageItem
    from lens_core.pipeline.context import StageContext

__all__ = ["buy"]


async def buy(
    keys: Sequence[str],
    fetch: Callable[[str], ImageItem],
    captioner: RequestCaptioner,
    journal: Journal,
    context: StageContext,
    settings: EngineSettings,
    known: dict[str, str],
    allowance: Allowance | None = None,
    heard: Heard | None = None,
) -> None:
    """Caption through the lanes; see `caption_all`, which raises what this does."""
    endpoint = captioner.endpoint
    profile = _profile(captioner, settings, context)
    lost = journal.lose_unfinished()
    if lost:
        context.progress.note(f"{lost} requests were in flight when the last run was cut off; they count as spent")
    spent = journal.spent() + (allowance.elsewhere if allowance else NOTHING)
    budget = Budget(settings.budget, profile, PROFILE_LANES[settings.lane], spent, allowance)
    waiting, count = journal.waiting()
    budget.reserve(waiting, requests=count)
    book = Book(journal, budget, context, heard or Heard())
    book.known({key: known[key] for key in keys if key in known})
    total = len(keys)

    def undecided() -> list[str]:
        statuses, waiting = journal.statuses(), journal.under_way()
        # An answer that a batch of this run lost is paid for: only another run may buy it again.
        return [
            k for k in keys if k not in waiting and (k not in statuses or (statuses[k] == "transport" and k in again))
        ]

    again = {key for key, status in journal.statuses().items() if status == "transport"}
    limiter = Limiter(
        settings.rpm or (profile.limits.rpm if profile else None),
        settings.tpm or (profile.limits.tpm if profile else None),
        sharers=allowance.workers if allowance else lambda: 1,
    )
    async with Client(endpoint) as client:
        batches = BatchLane(captioner, client, book, settings.batch, profile, context.state_dir)
        files = FilesLane(captioner, book, settings.batch, profile, context.state_dir)
        showing = asyncio.create_task(book.keep_showing())
        try:
            await batches.reattach()
            if again.issuperset(undecided()):
                book.look_back()
            again -= files.collect()
            if settings.lane != "files":
                files.withdraw()
            with Preparer(captioner.preparer(settings.lane), settings.workers) as preparer:
                if settings.lane == "batch":
                    await batches.run(undecided(), fetch, preparer)
                elif settings.lane == "files":
                    await batches.drain()
                    await files.write(undecided(), fetch, preparer)
                else:
                    await batches.collect()
                    book.patience = max(PATIENCE, 2 * endpoint.concurrency)
                    sender = Sender(captioner, client, limiter, book, settings.lane)
                    ask = partial(run_sync, fetch, sender, preparer, book, endpoint.concurrency)
                    while not book.stopping():
                        new = [key for key in undecided() if key not in again]
                        if not new and not journal.open_batches():
                            break
                        again.update(new)
                        await ask(new, beside=batches.drain())
                    if (left := undecided()) and not book.stopping():
                        book.ask_again()
                        await ask(left, beside=batches.drain())
            book.conclude()
        finally:
            showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await showing
            book.show()
    done = book.decided.total()
    if book.refused is not None:
        raise LensError(f"{endpoint.refusal(book.refused)}; {done} outcomes are kept")
    if book.silent is not None:
        kept = done - book.decided["transport"]
        raise LensError(
            f"{endpoint.url} {book.silent}; {kept} outcomes are kept, and the same command goes on from here"
        )
    if (reminder := files.reminder()) is not None:
        raise Stopped(f"{done} of {total} images are captioned; {reminder}")
    if book.exhausted is not None:
        raise Stopped(
            f"the budget is used up after {done} of {total} images: {book.exhausted}; raise it, and the same command "
            "goes on from here"
        )
    if context.should_stop() and done < total:
        in_batches = len(journal.under_way())
        there = f", {in_batches} more are waiting in batches" if in_batches else ""
        raise Stopped(f"stopped after {done} captions{there}; the same command goes on from here")


def _profile(captioner: RequestCaptioner, settings: EngineSettings, context: StageContext) -> Profile | None:
    """What is known of the model; only a bound in dollars needs it."""
    try:
        profile = captioner.profile
    except ConfigError:
        if settings.budget is not None and settings.budget.usd is not None:
            raise
        context.progress.warn("no profile describes this model: what the captions cost is not known")
        return None
    today = datetime.datetime.now(datetime.UTC).date()
    warning = profile.lifecycle_warning(today)
    if warning:
        context.progress.warn(warning)
    return profile
