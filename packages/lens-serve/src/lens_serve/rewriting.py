"""Prompts on their way to the drawing: rewritten, if that is wanted and comes in time; never a reason to fail.

A rewriter is somebody else's program and may be slow, down, or talk nonsense. So it is asked in threads, a few at once,
and nobody waits longer than the time-out: then the prompt is drawn as it is, and the answer says so. After three
failures in a row nobody asks for ten seconds. What a request that went away had asked for is finished and remembered,
in case it comes again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lens_core.errors import LensError
from lens_serve.rewriters.template import paragraph
from lens_serve.threads import in_a_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_core.registry import Registry
    from lens_serve.config import RewriteSettings

__all__ = ["Breaker", "Outcome", "Rewriting", "Rewritten"]

Outcome = Literal["off", "rewritten", "unchanged", "cached", "fallback"]

_Asked = tuple[str, str, int]
"""The id of a key, a prompt and a seed."""

_ABANDONED = 2
"""Times as many threads as may rewrite at once may exist: the rest are those that nobody waits for any more."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """What is drawn, and how that came about.

    Args:
        text: the prompt to draw.
        outcome: "off" (not asked), "rewritten", "cached" (rewritten before), "unchanged" (the rewriter left it), or
            "fallback" (it should have been rewritten, and is drawn as it was).
        by: the rewriter's name, unless it is "off".
        reason: of a fallback, fit to be shown.
        template: what the rewriter followed, if it follows one.
    """

    text: str
    outcome: Outcome
    by: str | None = None
    reason: str | None = None
    template: str | None = None


class Breaker:
    """Keeps from asking what failed `failures` times in a row: for `pause_s` nobody asks, then one at a time tries."""

    def __init__(self, *, failures: int = 3, pause_s: float = 10.0, clock: Callable[[], float] = time.monotonic):
        self._most, self._pause_s, self._clock = failures, pause_s, clock
        self._failures = 0
        self._closed_until = 0.0

    def lets_through(self) -> bool:
        """Whether one may ask now; whoever may after a pause is the one that tries."""
        if self._failures < self._most:
            return True
        if self._clock() < self._closed_until:
            return False
        self._closed_until = self._clock() + self._pause_s
        return True

    def succeeded(self) -> None:
        """It works (again)."""
        self._failures = 0

    def failed(self) -> None:
        """It did not."""
        self._failures += 1
        self._closed_until = self._clock() + self._pause_s


class Rewriting:
    """The rewriter of a server, and what it has rewritten.

    Everything but the rewriter itself happens in the event loop. What is remembered goes by key, prompt and seed, so
    that no key learns what others asked; the rewriter and its template stay the same as long as this lives.

    Args:
        settings: which rewriter, how long, how many.
        registry: builds it; a rewriter may say in an attribute `template` what it follows.
        clock: in seconds.

    Raises:
        LensError: the rewriter cannot be built.
    """

    def __init__(self, settings: RewriteSettings, registry: Registry, *, clock: Callable[[], float] = time.monotonic):
        self._settings = settings
        self._rewriter: Any = registry.build("rewriters", settings.rewriter) if settings.rewriter else None
        self._by = settings.rewriter.type if settings.rewriter else None
        self._template: str | None = getattr(self._rewriter, "template", None)
        self._breaker = Breaker(clock=clock)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._threads: set[asyncio.Future[str]] = set()
        self._asked: dict[_Asked, asyncio.Task[Rewritten]] = {}
        self._remembered: OrderedDict[_Asked, str] = OrderedDict()

    async def rewrite(self, prompt: str, *, seed: int, wanted: bool | None, key_id: str = "") -> Rewritten:
        """The prompt to draw.

        Args:
            prompt: as the user wrote it.
            seed: of the rewriter's choices; the same prompt and seed come from memory.
            wanted: what the request says; None takes the server's default.
            key_id: whose request it is; what others asked is not told from memory.
        """
        if self._rewriter is None or not (self._settings.default if wanted is None else wanted):
            return Rewritten(text=prompt, outcome="off")
        key = (key_id, prompt, seed)
        if key in self._remembered:
            self._remembered.move_to_end(key)
            return self._told("cached", prompt, self._remembered[key])
        if key not in self._asked:
            # A task of its own: it goes on when the request that began it has gone, and others may join.
            task = self._asked[key] = asyncio.create_task(self._ask(key))
            task.add_done_callback(lambda _: self._asked.pop(key))
        return await asyncio.shield(self._asked[key])

    async def close(self, patience_s: float = 1.0) -> None:
        """Wait a little for what is being rewritten, and forget the rest; its threads do not keep the process alive."""
        going: list[asyncio.Future[Any]] = [*self._asked.values(), *self._threads]
        if going:
            await asyncio.wait(going, timeout=patience_s)
        for task in list(self._asked.values()):
            task.cancel()

    async def _ask(self, key: _Asked) -> Rewritten:
        _, prompt, _ = key
        if not self._breaker.lets_through():
            return self._fallback(prompt, "the rewriter failed several times and is left alone for a while")
        end = asyncio.get_running_loop().time() + self._settings.timeout_s
        try:
            # Half the time to come to a turn, so that whoever gets one has as long again for the rewriting.
            async with asyncio.timeout(self._settings.timeout_s / 2):
                await self._slots.acquire()
        except TimeoutError:
            return self._fallback(prompt, "the rewriter is busy")
        try:
            if len(self._threads) >= _ABANDONED * self._settings.concurrency:
                return self._fallback(prompt, "the rewriter is busy")
            async with asyncio.timeout_at(end):
                text = await asyncio.shield(self._in_a_thread(key))
        except TimeoutError:
            self._breaker.failed()
            return self._fallback(prompt, f"the rewriter took longer than {self._settings.timeout_s:g} s")
        except Exception as error:
            self._breaker.failed()
            # Errors of ours keep prompts out of their messages; what others say stays out of the log.
            _log.warning("rewriter %s: %s", self._by, error if isinstance(error, LensError) else type(error).__name__)
            return self._fallback(prompt, "the rewriter failed")
        finally:
            self._slots.release()
        self._breaker.succeeded()
        return self._told("rewritten", prompt, text)

    def _in_a_thread(self, key: _Asked) -> asyncio.Future[str]:
        """What the rewriter makes of it; remembered when it comes, whoever still waits."""
        _, prompt, seed = key

        def rewritten() -> str:
            (answer,) = self._rewriter.rewrite([prompt], seed=seed)
            return prompt if answer == prompt else self._cut(answer)

        def came(future: asyncio.Future[str]) -> None:
            self._threads.discard(future)
            if future.exception() is None:  # it may be that nobody asks any more
                self._remember(key, future.result())

        future = in_a_thread(rewritten, name="rewriter")
        self._threads.add(future)
        future.add_done_callback(came)
        return future

    def _cut(self, answer: str) -> str:
        """One line of at most so many characters, cut between words if there are any."""
        text, most = paragraph(answer), self._settings.max_chars
        return text if len(text) <= most else text[: most + 1].rpartition(" ")[0] or text[:most]

    def _remember(self, key: _Asked, text: str) -> None:
        self._remembered[key] = text
        while len(self._remembered) > self._settings.cache:
            self._remembered.popitem(last=False)

    def _told(self, outcome: Outcome, prompt: str, text: str) -> Rewritten:
        if not text or text == prompt:
            return Rewritten(text=prompt, outcome="unchanged", by=self._by, template=self._template)
        return Rewritten(text=text, outcome=outcome, by=self._by, template=self._template)

    def _fallback(self, prompt: str, reason: str) -> Rewritten:
        return Rewritten(text=prompt, outcome="fallback", by=self._by, reason=reason, template=self._template)
