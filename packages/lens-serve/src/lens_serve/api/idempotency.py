"""The same request sent again is answered with the same images, not with others.

A client that may have to ask again, because its connection drops for instance, says so with an `Idempotency-Key` of its
own making: what it asked for is then drawn whether it stays or not, and kept for a day. Without one, a request that
says of itself that it is a repetition (OpenAI's clients do, in `x-stainless-retry-count`) joins the first while that
goes on. Two requests that are merely equal are two requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

from fastapi import Header

from lens_serve.api.errors import ApiError
from lens_serve.api.shelf import Keepable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pydantic import BaseModel

    from lens_serve.api.shelf import Shelf

__all__ = ["Idempotency", "IdempotencyKey", "Kept", "Repeatable", "Slot", "body_hash"]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="idempotency-key",
        min_length=1,
        max_length=255,
        description="Sent again with the same body, within a day: the same images. With another body: 409.",
    ),
]


class Repeatable(Keepable, Protocol):
    """What requests are answered from."""

    @property
    def good(self) -> bool:
        """Whether a repeated request is to be answered with it; otherwise it is tried anew."""
        ...

    def join(self) -> None:
        """One more is answered from it."""
        ...

    def leave(self) -> None:
        """One who joined needs it no more; it may be given up with the last."""
        ...

    async def cancel(self) -> None:
        """Give it up."""
        ...


T = TypeVar("T", bound=Repeatable)

Slot = tuple[str, str, bool]
"""Whose; the `Idempotency-Key`, or the body's hash; and whether it is the key."""


@dataclass
class _Making:
    """One that has not begun to answer."""

    body_hash: bytes
    task: asyncio.Future[Any]
    waiting: int = 0


@dataclass(frozen=True)
class Kept:
    """One that has an `Idempotency-Key`, and the body it came with."""

    body_hash: bytes
    value: Repeatable

    @property
    def key_id(self) -> str:
        """Whose it is."""
        return self.value.key_id

    @property
    def finished(self) -> bool:
        """Whether it changes no more."""
        return self.value.finished

    @property
    def nbytes(self) -> int:
        """What it takes, in bytes."""
        return self.value.nbytes


class Idempotency:
    """What was asked for lately.

    Args:
        shelf: where it is kept, if it came with an `Idempotency-Key`.
    """

    def __init__(self, shelf: Shelf[Slot, Kept]):
        self._making: dict[Slot, _Making] = {}
        self._kept = shelf
        self._flying: WeakValueDictionary[Slot, Any] = WeakValueDictionary()

    async def once(
        self,
        key_id: str,
        idempotency_key: str | None,
        body_hash: bytes,
        make: Callable[[], Awaitable[T]],
        *,
        repeated: bool = False,
    ) -> T:
        """What `make` makes, or made for the same request before. It is joined already; say `leave` at the end.

        To join it later would be too late: whoever else is answered from it may have gone meanwhile.

        Args:
            key_id: the API key's.
            idempotency_key: what the client calls this request, if it does.
            body_hash: of what it asks for.
            make: begins to answer it.
            repeated: whether the client says that it asks again.

        Raises:
            ApiError: 409 if the key came with another body before.
            Exception: what `make` raises; that is not remembered.
        """
        slot = (key_id, idempotency_key or body_hash.hex(), idempotency_key is not None)
        making = None
        if idempotency_key is not None:
            found, making = self._kept.get(slot), self._making.get(slot)
            known = found or making
            if known is not None and known.body_hash != body_hash:
                raise ApiError(
                    409,
                    "This 'Idempotency-Key' came with another request before; take a new one for each request.",
                    code="idempotency_conflict",
                    headers={"x-should-retry": "false"},
                )
            if found is not None and found.value.good:
                found.value.join()
                return cast("T", found.value)
        elif repeated:
            flying, making = self._flying.get(slot), self._making.get(slot)
            if flying is not None and flying.good and not flying.finished:
                flying.join()
                return cast("T", flying)
        begun = making or self._begin(slot, body_hash, make)
        return cast("T", await self._wait(begun, kept=idempotency_key is not None))

    async def stop(self) -> None:
        """Give up all that nobody may be waiting for any more."""
        tasks = [making.task for making in self._making.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(kept.value.cancel() for kept in self._kept if not kept.finished))

    def _begin(self, slot: Slot, body_hash: bytes, make: Callable[[], Awaitable[T]]) -> _Making:
        # A task of its own: whoever asked may go, and others may wait for the same.
        making = self._making[slot] = _Making(body_hash, asyncio.ensure_future(make()))

        def made(task: asyncio.Future[T]) -> None:
            if self._making.get(slot) is making:
                del self._making[slot]
            if task.cancelled() or task.exception() is not None:
                return
            if slot[2]:
                self._kept.put(slot, Kept(body_hash, task.result()))
            else:
                self._flying[slot] = task.result()

        making.task.add_done_callback(made)
        return making

    async def _wait(self, making: _Making, *, kept: bool) -> Any:
        making.waiting += 1
        try:
            made = await asyncio.shield(making.task)
            made.join()
            return made
        except asyncio.CancelledError:
            if making.waiting == 1 and not kept:
                making.task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    made = await making.task  # at the last moment
                    made.join()
                    made.leave()
            raise
        finally:
            making.waiting -= 1


def body_hash(route: str, asked: BaseModel) -> bytes:
    """Of what a request asks of a route, however it was written down."""
    return hashlib.sha256(f"{route}\n{asked.model_dump_json(exclude_none=True)}".encode()).digest()
