"""A run that is watched: canaries travel among the images, and every caption is looked at as it is journalled.

    caption_watched(settings, keys, fetch, captioner, journal, context, …)    # otherwise as `caption_all`

An alarm names the images in doubt. It is written to the stage's state before anything follows from it, so that no kill
makes it forgotten: `stop` ends the run, and makes the outcomes in doubt failures of transport, which the next run asks
for again; `mark` puts the alarm's kind among their `flags`. Canaries are requests like all others, with keys of their
own: they are in the journal, in the bill and within the budget, and in no caption table.
"""

from __future__ import annotations

import json
import random
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from lens_caption.engine.run import caption_all
from lens_caption.quality.binding import CanaryWatch
from lens_caption.quality.check import flagged
from lens_caption.quality.repeat_watch import RepeatWatch, SentenceWatch
from lens_core.errors import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lens_caption.engine.journal import Journal, Settlement
    from lens_caption.engine.settings import EngineSettings
    from lens_caption.quality.config import WatchSettings
    from lens_core.contracts import Captioner, CaptionOutcome, ImageItem
    from lens_core.pipeline.context import StageContext

__all__ = ["caption_watched"]

_ALARMS = "alarms.jsonl"
_MIN_BITS = 11
_SHOWN = 5
_CANARY = "canary-"


def caption_watched(
    watch: WatchSettings,
    keys: Sequence[str],
    fetch: Callable[[str], ImageItem],
    captioner: Captioner,
    journal: Journal,
    context: StageContext,
    *,
    settings: EngineSettings,
    batch_size: int = 32,
) -> None:
    """Caption every image that the journal does not know yet, and watch what comes back; see `caption_all`.

    Raises:
        Stopped: as `caption_all` does, and for an alarm if the settings say so.
        LensError: as `caption_all` does.
    """
    run = _Watch(watch, fetch, journal, context)
    run.settle()
    try:
        run.learn(captioner, settings)
        listening = cast("Journal", _Listening(journal, run.heed))
        caption_all(run.mixed(keys), run.fetch, captioner, listening, context, settings=settings, batch_size=batch_size)
    except Stopped:
        if not run.reason:
            raise
    finally:
        run.settle()
    if run.reason:
        raise Stopped(run.reason)


class _Watch:
    """One run's watches, and what they found."""

    def __init__(
        self, settings: WatchSettings, fetch: Callable[[str], ImageItem], journal: Journal, context: StageContext
    ):
        self.reason = ""
        self._settings, self._fetch, self._journal, self._context = settings, fetch, journal, context
        self._file = context.state_dir / _ALARMS
        self._lock = threading.Lock()
        self._alarms = 0
        self._since_good: list[str] = []
        self._crossed = False
        self._canaries = CanaryWatch(seed=context.seed) if settings.canaries else None
        self._repeats = self._sentences = None
        if settings.repeats:
            self._repeats = RepeatWatch(
                lambda key: self.fetch(key).data, min_words=settings.repeats, min_bits=_MIN_BITS
            )
        if settings.sentences:
            self._sentences = SentenceWatch(share=settings.sentences)

    def fetch(self, key: str) -> ImageItem:
        """An image or a canary; the watches look at images while the engine reads others."""
        if self._canaries and key.startswith(_CANARY):
            return replace(self._canaries.canaries[_number(key)].item, key=key)
        with self._lock:
            return self._fetch(key)

    def learn(self, captioner: Captioner, settings: EngineSettings) -> None:
        """Ask about each canary alone, one after the other, unless that is journalled; at once, whatever the lane."""
        if self._canaries is None:
            return
        alone = [f"{_CANARY}alone-{number}" for number in range(len(self._canaries.canaries))]
        known = self._journal.statuses()
        at_once = settings.model_copy(update={"lane": "sync" if settings.lane == "batch" else settings.lane})
        for key in alone:
            if known.get(key, "transport") == "transport":
                caption_all([key], self.fetch, captioner, self._journal, self._context, settings=at_once)
        self._context.progress.update(0)
        outcomes = [outcome for key in alone if (outcome := self._journal.get(key)) is not None]
        if sum(outcome.status == "ok" for outcome in outcomes) < len(alone) // 2:
            self._context.progress.warn("most canaries got no caption: they will not show whether captions cross")
        if complaint := self._canaries.learn(outcomes):
            self._alarm("canary", complaint, alone)

    def mixed(self, keys: Sequence[str]) -> list[str]:
        """The keys, with those of canaries at places that depend on the seed and the images alone."""
        if self._canaries is None or not self._settings.canaries:
            return list(keys)
        rng = random.Random(f"canaries {self._context.seed}")
        mixed: list[str] = []
        for place, key in enumerate(keys):
            if rng.random() * self._settings.canaries < 1:
                mixed.append(f"{_CANARY}{place}-{rng.randrange(len(self._canaries.canaries))}")
            mixed.append(key)
        return mixed

    def heed(self, outcomes: Iterable[CaptionOutcome]) -> None:
        """Look at outcomes as they come."""
        for outcome in outcomes:
            if outcome.status != "ok":
                continue
            if self._canaries and outcome.key.startswith(_CANARY):
                complaint = self._canaries.complaint(_number(outcome.key), outcome)
                if complaint:
                    self._alarm("canary", complaint, [outcome.key, *self._since_good])
                self._crossed = complaint is not None
                self._since_good.clear()
            elif self._crossed:
                self._alarm("canary", "no canary has been good since then", [outcome.key], shown=False)
            elif self._canaries:
                self._since_good.append(outcome.key)
            self._compare(outcome.key, outcome.text)

    def _compare(self, key: str, text: str) -> None:
        if self._repeats and (other := self._repeats.add(key, text)):
            said = f"two images that look different got one caption: {text[:80]!r}"
            self._alarm("repeated_caption", said, [key, other])
        if self._sentences and (shared := self._sentences.add(key, text)):
            sentence, having = shared
            said = f"{len(having)} of the last 1,000 captions say {sentence[:80]!r}"
            self._alarm("shared_sentence", said, having, shown=len(having) > 1)

    def _alarm(self, kind: str, said: str, keys: list[str], *, shown: bool = True) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "keys": keys}) + "\n")
        if self._settings.action == "stop" and not self.reason:
            self.reason = (
                f"the captions may not belong to their images: {said}; {len(keys)} in doubt will be asked for again "
                "by the same command: see that the server caches nothing by less than the whole image before that"
            )
            self._context.progress.stop_asked = True
        elif shown:
            self._alarms += 1
            if self._alarms <= _SHOWN:
                self._context.progress.warn(f"the captions may not belong to their images: {said}")

    def settle(self) -> None:
        """Do what follows from the alarms of this run, or of one that was killed before it could."""
        if not self._file.exists():
            return
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                alarm = json.loads(line)
            except ValueError:
                continue  # the line that was being written when the process was killed
            outcomes = (self._journal.get(key) for key in alarm["keys"])
            doubted = [outcome for outcome in outcomes if outcome is not None and outcome.status == "ok"]
            self._journal.write(self._doubted(outcome, alarm["kind"]) for outcome in doubted)
        self._file.unlink()

    def _doubted(self, outcome: CaptionOutcome, kind: str) -> CaptionOutcome:
        if self._settings.action == "stop" or outcome.key.startswith(_CANARY):
            return replace(outcome, status="transport", text="", detail=f"in doubt: {kind}", layers={})
        return replace(outcome, provenance=flagged(outcome.provenance, [kind]))


class _Listening:
    """A journal that tells of outcomes once they are written; it is the one place that all lanes come to."""

    def __init__(self, journal: Journal, heed: Callable[[Iterable[CaptionOutcome]], None]):
        self._journal, self._heed = journal, heed

    def write(self, outcomes: Iterable[CaptionOutcome]) -> None:
        outcomes = list(outcomes)
        self._journal.write(outcomes)
        self._heed(outcomes)

    def settle(self, settlements: Iterable[Settlement], outcomes: Iterable[CaptionOutcome] = ()) -> None:
        outcomes = list(outcomes)
        self._journal.settle(settlements, outcomes)
        self._heed(outcomes)

    def collect(self, intent: str, settlements: Iterable[Settlement], outcomes: Iterable[CaptionOutcome]) -> None:
        outcomes = list(outcomes)
        self._journal.collect(intent, settlements, outcomes)
        self._heed(outcomes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


def _number(key: str) -> int:
    return int(key.rsplit("-", 1)[-1])
