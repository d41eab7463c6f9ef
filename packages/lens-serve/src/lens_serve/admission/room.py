"""When a request would be within all bounds, and which places may be promised.

There are three bounds, in predicted seconds of work, and a request has to be within all of them:

    everything      `max_backlog_s` in all; but a request may always wait as long as it takes itself, or a slow machine
                    would take one at a time
    those like it   what goes before it, since it is no larger, keeps it waiting no more than `max_wait_factor` times
                    the time that it takes alone; so small requests are refused early rather than served late
    its key         `key_share` of the whole when others wait too
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lens_serve.admission.backlog import Coming, earliest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Protocol

    from lens_serve.admission.backlog import Pace
    from lens_serve.admission.keys import Key
    from lens_serve.admission.tickets import Tickets
    from lens_serve.config import AdmissionSettings

    class Work(Protocol):
        """A request that was let in, or promised a place."""

        @property
        def key(self) -> Key: ...

        @property
        def solo_s(self) -> float: ...


__all__ = ["Asking", "Room"]

_ROUNDS = 5
"""Two conditions push a place ahead in turn; almost always, they soon agree."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """A request at the door.

    Args:
        key: whose it is.
        asked: stands for what it asks for.
        solo_s: seconds that it takes when it is alone.
        now: when it came.
        level_s: seconds of work of one engine that it found, whatever is on its way there included.
    """

    key: Key
    asked: bytes
    solo_s: float
    now: float
    level_s: float


class Room:
    """How much room there is.

    Args:
        settings: the bounds.
        inside: the requests that were let in.
        tickets: the places that were promised.
        pace: how fast work is done.

    Attributes:
        replicas: how many engines share the work.
    """

    def __init__(
        self,
        settings: AdmissionSettings,
        inside: Callable[[], Collection[Work]],
        tickets: Tickets,
        pace: Pace,
    ):
        self._settings, self._inside, self._tickets, self._pace = settings, inside, tickets, pace
        self.replicas = 1

    def ahead_s(self, one: Asking) -> float:
        """Seconds of work that goes before a request, since it takes no longer."""
        smaller = sum(other.solo_s for other in self._inside() if other.solo_s <= one.solo_s)
        return min(smaller / self.replicas, one.level_s)

    def first_possible(self, one: Asking) -> float:
        """When a request would be within all bounds, if none was promised more than there is; `now` if it is."""
        settings, rate, count = self._settings, self._pace.value, self.replicas
        cost_s = one.solo_s / count
        like_it_s = self.ahead_s(one) - settings.max_wait_factor * one.solo_s
        weights = self._weights(one.key)
        own_s = sum(other.solo_s for other in self._inside() if other.key.id == one.key.id) / count
        bound_s = settings.max_backlog_s * (settings.key_share if len(weights) > 1 else 1.0)
        own_s = min(own_s, one.level_s) - _headroom_s(bound_s, cost_s)
        share = one.key.weight / sum(weights.values())
        at = one.now + max(0.0, like_it_s / rate, own_s / (share * rate))
        if at > one.now:
            return at
        # Who is here is refused for the sake of those who are due while its own work may wait. Those who are due later
        # do not count: not all will come, and the device should not wait for them.
        soon = [other for other in self._promised() if other.at <= one.now + settings.max_backlog_s]
        headroom_s = _headroom_s(settings.max_backlog_s, cost_s)
        return earliest(one.now, one.level_s, rate, soon, cost_s=cost_s, headroom_s=headroom_s)

    def free_place(self, one: Asking, possible: float) -> float:
        """The first time for which a place may be promised: all promises can be kept, and something is left over.

        Args:
            one: the request.
            possible: what `first_possible` says of it.
        """
        settings, rate, count = self._settings, self._pace.value, self.replicas
        cost_s = one.solo_s / count
        headroom_s = _headroom_s(settings.max_backlog_s, cost_s)
        all_ = self._promised()
        # A key is promised a part of what is coming, one after the other, so that whoever comes later finds some.
        share = min(settings.key_share, one.key.weight / (sum(self._weights(one.key).values()) + 1.0))
        own = [
            Coming(other.at, other.solo_s / count, 0.0)
            for other in self._tickets.promises
            if other.key.id == one.key.id and other.at > one.now
        ]
        at = possible
        for _ in range(_ROUNDS):
            start = at
            at = earliest(one.now, 0.0, share * rate, own, cost_s=cost_s, headroom_s=0.0, start=at)
            at = earliest(one.now, one.level_s, rate, all_, cost_s=cost_s, headroom_s=headroom_s, start=at)
            if at == start:
                break
        return at

    def _promised(self) -> list[Coming]:
        """What the promises come to, each of which wants to find as much room as it was promised."""
        count, bound_s = self.replicas, self._settings.max_backlog_s
        costs = [(one.at, one.solo_s / count) for one in self._tickets.promises]
        return [Coming(at, cost_s, _headroom_s(bound_s, cost_s)) for at, cost_s in costs]

    def _weights(self, key: Key) -> dict[str, float]:
        """Of all keys that wait, this one included."""
        waiting: list[Work] = [*self._inside(), *self._tickets.promises]
        return {one.key.id: one.key.weight for one in waiting} | {key.id: key.weight}


def _headroom_s(bound_s: float, cost_s: float) -> float:
    """The highest level that work may find."""
    return max(bound_s - cost_s, cost_s)
