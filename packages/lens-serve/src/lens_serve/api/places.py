"""What a request says of a place that was promised to it when it was refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header

__all__ = ["Place", "PlaceOf"]

Ticket = Annotated[
    str | None, Header(alias="x-lens-ticket", max_length=1024, description="From a 429: the place that it reserved.")
]
Retries = Annotated[str | None, Header(alias="x-stainless-retry-count", include_in_schema=False)]


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a request says of an earlier refusal: its ticket, and whether it is a repetition; None: nothing."""

    ticket: str | None = None
    repeated: bool | None = None


async def place_of(ticket: Ticket = None, retries: Retries = None) -> Place:
    """What our own clients say of an earlier refusal; OpenAI's say it when they repeat a request by themselves."""
    # A coroutine, though it waits for nothing: what is none is run in a thread, one for each request.
    return Place(ticket=ticket, repeated=None if retries is None else retries != "0")


PlaceOf = Annotated[Place, Depends(place_of)]
