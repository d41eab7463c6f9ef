"""All safety checkers of a server, asked in threads: what one of them refuses is not drawn, or not handed out.

A checker that breaks or hangs refuses too. Nothing passes that nobody has looked at.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lens_serve.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from lens_core.config.base import ComponentConfig
    from lens_core.registry import Registry

__all__ = ["CheckFailed", "Gate", "Unsafe", "Where"]

Where = Literal["prompt", "rewritten prompt", "image"]

TIMEOUT_S = 30.0
"""For a checker's answer."""

_AT_ONCE = 16

_log = logging.getLogger(__name__)


class Unsafe(Exception):
    """A checker refused.

    Args:
        reason: fit to be shown to whoever asked.
        where: in what.
    """

    def __init__(self, reason: str, where: Where):
        super().__init__(f"{where}: {reason}")
        self.reason, self.where = reason, where


class CheckFailed(Unsafe):
    """A checker broke: the server's fault, not the client's. What happened is in the log."""


class Gate:
    """The checkers in their order; the first that refuses decides.

    Args:
        settings: of the checkers.
        registry: builds them.

    Raises:
        LensError: one cannot be built.
    """

    def __init__(self, settings: Sequence[ComponentConfig], registry: Registry):
        self._checkers: list[tuple[str, Any]] = [
            (config.type, registry.build("safety_checkers", config)) for config in settings
        ]
        self._threads = Threads("safety", most=_AT_ONCE, timeout_s=TIMEOUT_S)

    async def check_prompt(self, text: str, where: Where) -> None:
        """Raise `Unsafe` if a checker refuses what a user wrote, or what was made of it."""
        await self._ask("check_prompt", text, where)

    async def check_image(self, image_HW3: np.ndarray) -> None:
        """Raise `Unsafe` if a checker refuses a picture, uint8 [H, W, 3]."""
        await self._ask("check_image", image_HW3, "image")

    async def _ask(self, question: str, about: str | np.ndarray, where: Where) -> None:
        for name, checker in self._checkers:
            try:
                reason = await self._threads.run(partial(_answer, name, getattr(checker, question), about, where))
            except TimeoutError:
                _log.error("the safety checker %s took longer than %g s on the %s", name, TIMEOUT_S, where)
                raise CheckFailed("it could not be checked", where) from None
            if reason is not None:
                raise Unsafe(reason, where)


def _answer(name: str, check: Callable[[Any], str | None], about: Any, where: Where) -> str | None:
    try:
        return check(about)
    except Exception as error:
        # Its message may quote the prompt; where it broke says enough.
        place = error.__traceback__
        while place and place.tb_next:
            place = place.tb_next
        line = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
        _log.error("the safety checker %s broke on the %s: %s at %s", name, where, type(error).__name__, line)
        raise CheckFailed("it could not be checked", where) from None
