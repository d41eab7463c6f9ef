"""Caption many images: batches through one captioner, every outcome journalled before it counts.

This is the seam where limits, budgets and several lanes will go; what stays is that an image's outcome is decided once.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from lens_core.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lens_caption.engine.journal import Journal
    from lens_core.contracts import Captioner, CaptionOutcome, ImageItem
    from lens_core.pipeline.context import StageContext

__all__ = ["caption_all"]


def caption_all(
    items: Iterable[ImageItem], captioner: Captioner, journal: Journal, context: StageContext, *, batch_size: int
) -> dict[str, CaptionOutcome]:
    """Caption every image that the journal does not know yet.

    Failures of transport are tried again when an unfinished stage goes on; every other outcome is final.

    Args:
        items: the images.
        captioner: who writes.
        journal: what is known already.
        context: for progress and interruption.
        batch_size: images handed over at once.

    Returns:
        the outcomes by image key.

    Raises:
        Stopped: the user asked for it; what is done is journalled.
    """
    outcomes = {key: outcome for key, outcome in journal.read().items() if outcome.status != "transport"}
    if outcomes:
        context.progress.note(f"{len(outcomes)} captions are there already")
    done, failed = len(outcomes), sum(outcome.status != "ok" for outcome in outcomes.values())
    todo = (item for item in items if item.key not in outcomes)
    for batch in _batches(todo, batch_size):
        if context.should_stop():
            raise Stopped(f"stopped after {done} captions; the same command goes on from here")
        fresh = captioner.caption(batch)
        journal.write(fresh)
        for outcome in fresh:
            outcomes[outcome.key] = outcome
            failed += outcome.status != "ok"
        done += len(fresh)
        context.progress.update(done, failed=failed)
    return outcomes


def _batches(items: Iterable[ImageItem], size: int) -> Iterator[list[ImageItem]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
