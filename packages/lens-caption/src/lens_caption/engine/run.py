"""Caption many images: through the lanes if the captioner's requests can be sent for it, else batch by batch."""

from __future__ import annotations

import asyncio
import sqlite3
from itertools import islice
from typing import TYPE_CHECKING

from lens_caption.engine.request import RequestCaptioner
from lens_core.errors import ConfigError, Stopped, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lens_caption.engine.book import Heard
    from lens_caption.engine.journal import Journal
    from lens_caption.engine.settings import EngineSettings
    from lens_caption.scale.allowance import Allowance
    from lens_core.contracts import Captioner, ImageItem
    from lens_core.pipeline.context import StageContext

__all__ = ["caption_all"]


def caption_all(
    keys: Sequence[str],
    fetch: Callable[[str], ImageItem],
    captioner: Captioner,
    journal: Journal,
    context: StageContext,
    *,
    settings: EngineSettings,
    batch_size: int = 32,
    allowance: Allowance | None = None,
    heard: Heard | None = None,
) -> None:
    """Caption every image that the journal does not know yet; the outcomes are in the journal.

    Failures of transport are tried again in the end, and when an unfinished stage goes on; other outcomes are final.

    Args:
        keys: of the images.
        fetch: reads one; it is called from one thread at a time.
        captioner: who writes.
        journal: what is known already.
        context: for progress and interruption.
        settings: how to buy.
        batch_size: images handed over at once, to a captioner that sends its own requests.
        allowance: what this process may take of a budget and a rate that are common to several.
        heard: what the endpoint said about other images of the stage; what it says about these is added.

    Raises:
        Stopped: the user asked for it, or the budget is used up; what is done is journalled.
        ConfigError: the settings want a price that is not known, or a lane that the captioner does not have.
        LensError: the endpoint refuses everything (the key, the model, the account), answers about no image, or never
            with a caption.
        StorageError: the journal cannot be written, because the disk is full, say.
    """
    try:
        _caption_all(keys, fetch, captioner, journal, context, settings, batch_size, allowance, heard)
    except sqlite3.Error as error:
        raise StorageError(f"the journal in {context.state_dir} cannot be used: {error}") from error


def _caption_all(
    keys: Sequence[str],
    fetch: Callable[[str], ImageItem],
    captioner: Captioner,
    journal: Journal,
    context: StageContext,
    settings: EngineSettings,
    batch_size: int,
    allowance: Allowance | None,
    heard: Heard | None,
) -> None:
    statuses = journal.statuses()
    known = {key: statuses[key] for key in keys if statuses.get(key, "transport") != "transport"}
    if known:
        context.progress.note(f"{len(known)} captions are there already")
    if isinstance(captioner, RequestCaptioner):
        # Only a captioner that asks a server needs the libraries for that.
        from lens_caption.engine.buy import buy  # noqa: PLC0415

        asyncio.run(buy(keys, fetch, captioner, journal, context, settings, known, allowance, heard))
    else:
        if settings.lane != "sync" or settings.budget is not None:
            raise ConfigError("this captioner asks no server that bills: it has no lanes and no budget", key="lane")
        _ask(keys, fetch, captioner, journal, context, known, batch_size)


def _ask(
    keys: Sequence[str],
    fetch: Callable[[str], ImageItem],
    captioner: Captioner,
    journal: Journal,
    context: StageContext,
    known: dict[str, str],
    batch_size: int,
) -> None:
    done = sum(key in known for key in keys)
    failed = sum(known.get(key, "ok") != "ok" for key in keys)
    for batch in _batches((key for key in keys if key not in known), batch_size):
        if context.should_stop():
            raise Stopped(f"stopped after {done} captions; the same command goes on from here")
        fresh = captioner.caption([fetch(key) for key in batch])
        journal.write(fresh)
        done += len(fresh)
        failed += sum(outcome.status != "ok" for outcome in fresh)
        context.progress.update(done, failed=failed)


def _batches(keys: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(islice(keys, size)):
        yield batch
