"""`/health/live` and `/health/ready`: whether to start the process anew, and whether to send it requests.

Both answer without a key, since whoever asks usually has none. What the engines do is told only to those with one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from lens_serve.api.auth import key_of
from lens_serve.api.errors import ApiError

if TYPE_CHECKING:
    from lens_serve.server import Server

__all__ = ["EngineHealth", "Live", "Readiness", "router"]

router = APIRouter(tags=["health"])


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class EngineHealth(BaseModel):
    """One engine."""

    ready: bool = Field(description="It draws.")
    device: str | None = Field(description="On what; null until it was ready.")
    jobs: int = Field(description="Pictures that it has.")
    backlog_s: float = Field(description="Predicted seconds of them.")
    restarts: int = Field(description="How often it was started anew.")
    heartbeat_age_s: float | None = Field(description="Seconds since it last gave a sign of life.")


class Readiness(BaseModel):
    """Whether requests are served now."""

    status: Literal["ready", "loading", "unavailable", "draining"] = Field(
        description="`unavailable`: the engines were lost, and are started anew."
    )
    engines: list[EngineHealth] | None = Field(None, description="Told to those with a key.")


@router.get("/health/live")
async def live() -> Live:
    """The process answers; if it does not, start it anew."""
    return Live()


@router.get("/health/ready", responses={503: {"model": Readiness, "description": "Not now."}})
async def ready(request: Request, response: Response) -> Readiness:
    """Whether requests are served now; 503 while models load, engines are started anew, or the server shuts down."""
    server: Server = request.app.state.server
    if server.admission.draining:
        readiness = Readiness(status="draining")
    elif server.engines.is_ready:
        readiness = Readiness(status="ready")
    else:
        readiness = Readiness(status="unavailable" if server.engines.models else "loading")
    if readiness.status != "ready":
        response.status_code = 503
        response.headers["retry-after"] = "2"
    if _has_key(request, server):
        readiness.engines = [
            EngineHealth(
                ready=state.is_ready,
                device=state.device,
                jobs=state.jobs,
                backlog_s=round(state.backlog_s, 3),
                restarts=state.restarts,
                heartbeat_age_s=None if state.heartbeat_age_s is None else round(state.heartbeat_age_s, 3),
            )
            for state in server.engines.states
        ]
    return readiness


def _has_key(request: Request, server: Server) -> bool:
    try:
        key_of(request.headers, server.keyring, "images")
    except ApiError:
        return False
    return True
