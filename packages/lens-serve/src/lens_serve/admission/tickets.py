"""Places that were promised to those who were refused.

A promise is kept for one request of one key that costs no more than the one that was refused, from its time until a
little later. The client proves it by a ticket: the promise's number, signed with a secret of this process. Clients
that cannot send tickets are known by what they ask for: they repeat it word for word. What was asked for is kept as a
digest under the same secret, so that nobody can look for two requests that count as one.
"""

from __future__ import annotations

import bisect
import hashlib
import hmac
import itertools
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_serve.admission.keys import Key

__all__ = ["Promise", "Tickets"]

_FORM = re.compile(r"([0-9a-f]{1,12})\.([0-9a-f]{32})")


@dataclass(frozen=True, eq=False)
class Promise:
    """A place.

    Args:
        number: counts up.
        key: whose it is.
        asked: stands for what was asked for: its `Tickets.digest`.
        solo_s: predicted seconds of that, when it is alone.
        at: when it may come.
        until: and no later.
    """

    number: int
    key: Key
    asked: bytes
    solo_s: float
    at: float
    until: float

    def fits(self, asked: bytes, solo_s: float) -> bool:
        """Whether a request may have the place at its time. The same one may be predicted anew."""
        return asked == self.asked or solo_s <= self.solo_s


class Tickets:
    """The promises that are outstanding.

    Args:
        per_key: how many of one key at most.
        in_all: how many at most, but for the first of each key.
    """

    def __init__(self, *, per_key: int = 256, in_all: int = 512):
        self._per_key, self._in_all = per_key, in_all
        self._secret = secrets.token_bytes(32)
        self._numbers = itertools.count(1)
        self._promises: dict[int, Promise] = {}
        self._in_order: list[Promise] = []

    @property
    def promises(self) -> Sequence[Promise]:
        """All of them, in the order of their times."""
        return self._in_order

    def digest(self, said: str) -> bytes:
        """What stands for a request, and for no other; in this process alone."""
        return hashlib.blake2b(said.encode(), key=self._secret, digest_size=32).digest()

    def has_room(self, key: Key) -> bool:
        """Whether a key may be promised one more; a first one always, whatever others hold."""
        held = sum(promise.key.id == key.id for promise in self._in_order)
        return held < self._per_key and (len(self._in_order) < self._in_all or not held)

    def promise(self, key: Key, asked: bytes, solo_s: float, at: float, until: float) -> Promise:
        """Promise a place."""
        promise = Promise(next(self._numbers), key, asked, solo_s, at, until)
        self._promises[promise.number] = promise
        bisect.insort(self._in_order, promise, key=lambda one: one.at)
        return promise

    def ticket(self, promise: Promise) -> str:
        """What proves a promise."""
        return f"{promise.number:x}.{self._signature(promise)}"

    def read(self, ticket: str | None, key: Key) -> Promise | None:
        """The outstanding promise that a ticket of this key proves, whether its time has come or not."""
        if ticket is None or not (parts := _FORM.fullmatch(ticket)):
            return None
        promise = self._promises.get(int(parts[1], 16))
        if promise is None or promise.key.id != key.id:
            return None
        return promise if hmac.compare_digest(parts[2], self._signature(promise)) else None

    def find(self, key: Key, now: float, asked: bytes) -> Promise | None:
        """The first promise whose time has come to a request that is repeated without its ticket."""
        for promise in self._in_order:
            if promise.key.id == key.id and promise.asked == asked and promise.at <= now:
                return promise
        return None

    def drop(self, promise: Promise) -> None:
        """The promise was kept, or is not needed any more."""
        if self._promises.pop(promise.number, None) is not None:
            self._in_order.remove(promise)

    def expire(self, now: float) -> None:
        """Forget those whose time is over."""
        for promise in [one for one in self._in_order if one.until < now]:
            self.drop(promise)

    def _signature(self, promise: Promise) -> str:
        content = f"{promise.number}\n{promise.key.id}\n{promise.solo_s!r}\n{promise.at!r}".encode()
        return hmac.new(self._secret, content, hashlib.sha256).hexdigest()[:32]
