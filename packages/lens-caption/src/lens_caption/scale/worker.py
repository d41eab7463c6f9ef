"""What a worker does: claim a part, caption it with the engine, publish it; until none is left.

A part is bought with a journal of its own on this machine's disk. A worker that is killed finds claim and journal again
when it starts on the same machine; a worker elsewhere takes the part over once this one is silent, and buys again what
was not published. Whoever publishes a part first counts.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from typing import TYPE_CHECKING, cast

from lens_caption.captioners.own import seen_from
from lens_caption.engine.book import Heard
from lens_caption.engine.budget import NOTHING
from lens_caption.engine.journal import Journal
from lens_caption.engine.run import caption_all
from lens_caption.scale.allowance import Allowance
from lens_caption.scale.plan import Plan
from lens_caption.scale.takeover import take_over
from lens_core.contracts import ImageItem
from lens_core.errors import LensError, Stopped, StorageError
from lens_core.pipeline.context import StageContext
from lens_core.storage import urls
from lens_core.storage.leases import Leases, worker_of
from lens_core.storage.shards import ShardReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lens_caption.engine.budget import Amount
    from lens_caption.scale.plan import Part
    from lens_caption.stages.caption.config import CaptionStageConfig
    from lens_core.contracts import Captioner
    from lens_core.pipeline.progress import Progress

__all__ = ["work"]


def work(config: CaptionStageConfig, context: StageContext) -> None:
    """Do a share of the stage's parts; when it returns, all of them are published, or the stage is done.

    Args:
        config: of the stage.
        context: of the stage; its `state_dir` is this worker's own, and survives a kill.

    Raises:
        Stopped: the user asked for it, or the budget is used up; what is done is kept.
        LensError: whatever the engine has to say.
    """
    assert config.executor.type != "process"
    plan = Plan(config, context)
    if plan.finished():
        return
    (images,) = context.inputs
    folder = context.state_dir / "parts"
    folder.mkdir(exist_ok=True)
    leases = Leases(urls.join(plan.url, "leases"), worker_of(context.state_dir), ttl_s=config.executor.lease_s)
    reader = ShardReader(images)
    captioner = context.registry.build("captioners", seen_from(config.captioner, context.base))
    try:
        with leases:
            if config.executor.type == "leases":
                take_over(context, plan, reader)
            Worker(config, context, plan, leases, reader, captioner).run()
    except StorageError:
        if not plan.finished():  # else the folder was removed under our eyes, because all is done
            raise
    finally:
        captioner.close()
        reader.close()
    shutil.rmtree(folder)


class Worker:
    """One worker on one plan; see `work`."""

    def __init__(
        self,
        config: CaptionStageConfig,
        context: StageContext,
        plan: Plan,
        leases: Leases,
        reader: ShardReader,
        captioner: Captioner,
    ):
        assert config.executor.type != "process"
        self._config = config
        self._context = context
        self._plan = plan
        self._leases = leases
        self._reader = reader
        self._captioner = captioner
        self._parts = plan.parts(reader)
        self._done = 0
        self._spent = {file.name: _spent(file) for file in (context.state_dir / "parts").glob("*.sqlite")}
        self._allowance = Allowance(plan.grants_url, leases, config.engine.budget)
        self._heard = Heard()
        self._warned: set[str] = set()

    def run(self) -> None:
        """Take part after part."""
        self._context.progress.start(len(self._reader), "images")
        while open_ := self._open_parts():
            took = False
            for part in open_:
                if self._take(part):
                    self._caption(part)
                    took = True
            if not took:
                self._leases.pause()

    def _open_parts(self) -> list[Part]:
        """Those that are not published, from somewhere on, so that few workers want the same; none at the end."""
        published = self._plan.published()
        if self._plan.finished():
            return []
        self._done = sum(len(part) for part in self._parts if part.name in published)
        self._context.progress.update(self._done)
        open_ = [part for part in self._parts if part.name not in published]
        first = random.randrange(len(open_) or 1)
        return open_[first:] + open_[:first]

    def _take(self, part: Part) -> bool:
        if self._context.should_stop():
            raise Stopped(f"stopped after {self._done} captions; the same command goes on from here")
        # It may have been published since it was listed; and once the stage is done, the very record of that is gone.
        return self._leases.claim(part.name) and not self._plan.is_published(part) and not self._plan.finished()

    def _caption(self, part: Part) -> None:
        keys = self._reader.columns["key"][part.start : part.stop]
        file = self._context.state_dir / "parts" / f"{part.name}.sqlite"
        self._allowance.elsewhere = sum((spent for name, spent in self._spent.items() if name != file.name), NOTHING)
        if not self._heard.answers:  # a part may be one image: whose fault it is that it fails, others show
            self._heard.count(self._plan.statuses(max(map(len, self._parts))))
        journal = Journal(file)
        try:
            self._inherit(part, journal)
            try:
                caption_all(
                    keys,
                    self._fetch,
                    self._captioner,
                    journal,
                    self._context_of(part),
                    settings=self._config.engine,
                    batch_size=self._config.batch_size,
                    allowance=self._allowance,
                    heard=self._heard,
                )
            except LensError as error:
                self._plan.leave(part, self._leases.worker, journal.read().values(), spent=journal.spent())
                if self._leases.lost(part.name):
                    return  # another worker has it, who took this one for dead
                raise self._told(error, journal) from error
            outcomes = journal.read()
            layers = getattr(self._captioner, "layers", ())
            spent = journal.spent() + self._plan.left_spent(part, self._leases.worker)
            if self._plan.publish(part, [outcomes[key] for key in keys], spent=spent, layers=layers):
                self._done += len(part)
        finally:
            self._spent[file.name] = journal.spent()
            self._leases.done(part.name)
            journal.close()

    def _inherit(self, part: Part, journal: Journal) -> None:
        """What workers before had of the part need not be bought again."""
        known = journal.statuses()
        journal.write(item for item in self._plan.left(part) if item.key not in known and item.status != "transport")

    def _fetch(self, key: str) -> ImageItem:
        row = self._reader.by_key(key)
        return ImageItem(key=row.key, data=row.data, metadata=row.metadata)

    def _context_of(self, part: Part) -> StageContext:
        progress = cast("Progress", _PartProgress(self._context.progress, self._done, self._warned))
        fields = {field.name: getattr(self._context, field.name) for field in dataclasses.fields(StageContext)}
        return _PartContext(
            **{**fields, "progress": progress},
            stop_asked=lambda: self._context.should_stop() or self._leases.lost(part.name),
        )

    def _told(self, error: LensError, journal: Journal) -> LensError:
        """The engine counts this part alone; the user wants to know of all."""
        if not isinstance(error, Stopped):
            return error
        done = self._done + sum(status != "transport" for status in journal.statuses().values())
        if self._context.should_stop():
            return Stopped(f"stopped after {done} captions; the same command goes on from here")
        total = len(self._reader)
        return Stopped(
            f"the budget is used up after {done} of {total} images; raise it, and the same command goes on from here"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PartContext(StageContext):
    """A stage's context while one part is captioned, which also stops when the part is lost."""

    stop_asked: Callable[[], bool]

    def should_stop(self) -> bool:
        return self.stop_asked()


class _PartProgress:
    """A stage's progress while one part is captioned: the engine counts from nought, the stage goes on."""

    def __init__(self, stage: Progress, before: int, warned: set[str]):
        self._stage = stage
        self._before = before
        self._warned = warned
        self.note = stage.note

    def update(self, done: float, **metrics: object) -> None:
        self._stage.update(self._before + done, **metrics)

    def warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            self._stage.warn(message)


def _spent(file: Path) -> Amount:
    journal = Journal(file)
    try:
        return journal.spent()
    finally:
        journal.close()
