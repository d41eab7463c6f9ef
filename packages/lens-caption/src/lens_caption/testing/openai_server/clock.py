"""The server's clock: batches and files live by it, so that a day can pass in a test."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock"]


class Clock:
    """Seconds since 1970, running at a speed of one's own or standing still.

    Args:
        speed: seconds per real second; 0 stands still until `advance` is called.
    """

    def __init__(self, speed: float = 1.0):
        if not 0 <= speed < float("inf"):
            raise ValueError("a clock runs forwards")
        self.speed = speed
        self._lock = threading.Lock()
        self._ahead = 0.0
        self._origin = time.time()
        self._started = time.monotonic()
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def of(cls, setting: str | float | Clock) -> Clock:
        """From "real", "manual", a speed, or a clock."""
        if isinstance(setting, Clock):
            return setting
        if isinstance(setting, str):
            return cls({"real": 1.0, "manual": 0.0}[setting] if setting in {"real", "manual"} else float(setting))
        return cls(float(setting))

    @property
    def manual(self) -> bool:
        """Whether only `advance` moves it."""
        return self.speed == 0

    def now(self) -> float:
        """Seconds since 1970."""
        with self._lock:
            return self._origin + self._ahead + self.speed * (time.monotonic() - self._started)

    def advance(self, seconds: float) -> float:
        """Turn it on by some seconds; what was due by then has happened when this returns. The new time."""
        if seconds < 0:
            raise ValueError("a clock runs forwards")
        with self._lock:
            self._ahead += seconds
        for listener in self._listeners:
            listener()
        return self.now()

    def on_advance(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the clock has been turned."""
        self._listeners.append(listener)
