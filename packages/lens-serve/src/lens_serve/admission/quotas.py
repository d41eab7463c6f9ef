"""How much a key may ask for in a day, and at once.

What a request is predicted to take is set aside when it comes in, so that many at once cannot overdraw; what it took
is charged as its images are done, and the rest comes back when it ends, however it does. Days are UTC's. The
count lives as long as the server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_serve.admission.keys import Key

__all__ = ["Allowance", "Quotas"]

DAY_S = 86_400


@dataclass
class Allowance:
    """What is set aside for one request, on the account of one day."""

    account: _Account
    images: int
    seconds: float

    def charge(self, images: int, seconds: float) -> None:
        """Some of it was used; more seconds than were set aside, perhaps."""
        self.account.images += images
        self.account.seconds += seconds
        self.give_back(images, seconds)

    def give_back(self, images: int | None = None, seconds: float | None = None) -> None:
        """Some of it is not set aside any more; by default all."""
        images = self.images if images is None else min(images, self.images)
        seconds = self.seconds if seconds is None else min(seconds, self.seconds)
        self.images -= images
        self.seconds -= seconds
        self.account.held_images -= images
        self.account.held_seconds -= seconds


@dataclass
class _Account:
    """Of one key on one day: used, and set aside."""

    day: int
    images: int = 0
    seconds: float = 0.0
    held_images: int = 0
    held_seconds: float = 0.0


class Quotas:
    """The accounts of all keys.

    Args:
        wall: seconds since 1970, for the days.
    """

    def __init__(self, wall: Callable[[], float] = time.time):
        self._wall = wall
        self._accounts: dict[str, _Account] = {}

    def exceeded(self, key: Key, images: int, seconds: float) -> str | None:
        """Why so much more is too much, for people; None if it is not."""
        account = self._account(key)
        if key.images_per_day is not None:
            left = key.images_per_day - account.images - account.held_images
            if images > left:
                asked = "1 image" if images == 1 else f"{images} images"
                return f"This asks for {asked}; {max(0, left)} of today's {key.images_per_day} are left."
        if key.seconds_per_day is not None:
            left_s = key.seconds_per_day - account.seconds - account.held_seconds
            if seconds > left_s:
                left_s, of_s = max(0.0, left_s), key.seconds_per_day
                return f"This takes about {seconds:.1f} s; {left_s:.1f} s of today's {of_s:g} s are left."
        return None

    def reserve(self, key: Key, images: int, seconds: float) -> Allowance:
        """Set aside what a request will use."""
        account = self._account(key)
        account.held_images += images
        account.held_seconds += seconds
        return Allowance(account, images, seconds)

    def until_tomorrow_s(self) -> float:
        """Seconds until quotas are whole again."""
        return DAY_S - self._wall() % DAY_S

    def _account(self, key: Key) -> _Account:
        day = int(self._wall() // DAY_S)
        account = self._accounts.get(key.id)
        if account is None or account.day != day:
            account = self._accounts[key.id] = _Account(day)
        return account
