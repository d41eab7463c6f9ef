"""`POST /v1/images/generations`: images for a prompt, at once or as events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response  # noqa: TC002 (FastAPI reads annotations at run time)

from lens_serve.api.auth import ImagesKey  # noqa: TC001 (FastAPI reads annotations at run time)
from lens_serve.api.delivery import IMAGES, Same, deliver
from lens_serve.api.idempotency import IdempotencyKey, body_hash
from lens_serve.api.orders import generation_order
from lens_serve.api.places import PlaceOf  # noqa: TC001
from lens_serve.api.schemas import Generation  # noqa: TC001

if TYPE_CHECKING:
    from lens_serve.server import Server

__all__ = ["router"]

router = APIRouter(tags=["images"])


@router.post("/v1/images/generations", responses=IMAGES)
async def generate(
    asked: Generation, request: Request, key: ImagesKey, place: PlaceOf, idempotency_key: IdempotencyKey = None
) -> Response:
    """Draw images for a prompt."""
    server: Server = request.app.state.server
    order = generation_order(server, asked, key=key, place=place)
    same = Same(idempotency_key, body_hash(request.url.path, asked))
    return await deliver(server, request, order, "image_generation", same, stream=bool(asked.stream))
