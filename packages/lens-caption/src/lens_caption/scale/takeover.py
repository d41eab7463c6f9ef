"""From one process to several machines in the middle of a stage: what it bought is left to all, and counts as spent.

Its journal stays where it is, on the machine where it was written. Whoever starts there does this; to do it again
changes nothing.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from lens_caption.engine.budget import NOTHING
from lens_caption.engine.journal import Journal
from lens_caption.scale.allowance import Draws
from lens_core.errors import LensError
from lens_core.pipeline.runner import state_root_of
from lens_core.storage.leases import worker_of

if TYPE_CHECKING:
    from lens_caption.scale.plan import Plan
    from lens_core.pipeline.context import StageContext
    from lens_core.storage.shards import ShardReader

__all__ = ["take_over"]


def take_over(context: StageContext, plan: Plan, reader: ShardReader) -> None:
    """Leave to all what one process on this machine bought of the stage with the same settings, if any did.

    Args:
        context: of the stage.
        plan: of its parts.
        reader: of its images.

    Raises:
        LensError: some images wait in batches, which only that process can fetch.
    """
    file = state_root_of(context.run_url) / context.state_dir.name / "journal.sqlite"
    if not file.exists():
        return
    draws, process = Draws(plan.grants_url), plan.ALONE + worker_of(file.parent)
    if process in draws.by_worker:
        return
    keys, left = reader.columns["key"], 0
    with closing(Journal(file)) as journal:
        _, waiting = journal.waiting()
        if waiting:
            raise LensError(
                f"{waiting} images of {context.name} wait in batches or request files of one process: "
                "go on with the executor 'process' until they are answered"
            )
        for part in plan.parts(reader):
            outcomes = [item for key in keys[part.start : part.stop] if (item := journal.get(key))]
            if outcomes:
                plan.leave(part, process, outcomes, spent=NOTHING)  # the draw below has it
                left += len(outcomes)
        while process not in draws.by_worker:
            draws.add(process, journal.spent())
    context.progress.note(f"{left} captions that one process had are left to all")
