"""`POST /v1/images/edits`: images that start from another one.

No model of Lens follows instructions like "make the hat red", and a server must not pretend: without `lens.mode` the
answer is 404. With it, the prompt describes the whole image that is wanted, as in a generation.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Annotated

import numpy as np
from fastapi import APIRouter, Form, Request
from starlette.responses import Response  # noqa: TC002 (FastAPI reads annotations at run time)

from lens_core import images
from lens_serve.api.answers import unless_gone
from lens_serve.api.auth import ImagesKey  # noqa: TC001 (FastAPI reads annotations at run time)
from lens_serve.api.delivery import IMAGES, Same, deliver
from lens_serve.api.errors import ApiError
from lens_serve.api.idempotency import IdempotencyKey  # noqa: TC001
from lens_serve.api.orders import model_of, order_of, size_of
from lens_serve.api.places import PlaceOf  # noqa: TC001
from lens_serve.api.schemas import EditForm, EditLens
from lens_serve.engine.messages import StartPicture
from lens_serve.images.upload import read_upload

if TYPE_CHECKING:
    from lens_serve.admission.keys import Key
    from lens_serve.config import Bounds
    from lens_serve.engine.messages import ModelInfo
    from lens_serve.server import Server

__all__ = ["router"]

router = APIRouter(tags=["images"])

UPLOAD_PIXELS = 2**25
"""Of a client's picture before it is fitted to the size that is drawn; cameras make half as many."""

STRENGTH = 0.6

_EXPLAINED = (
    "No model here follows editing instructions. Set lens.mode to 'img2img', which starts from the whole image, or to"
    " 'inpaint', which redraws where a mask is transparent; the prompt then describes the whole image that is wanted."
)


@router.post("/v1/images/edits", responses=IMAGES)
async def edit(
    asked: Annotated[EditForm, Form(media_type="multipart/form-data")],
    request: Request,
    key: ImagesKey,
    place: PlaceOf,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Draw images that start from another."""
    server: Server = request.app.state.server
    lens = asked.lens or EditLens()
    model = model_of(server, asked.model)
    form = await request.form()
    if len(form.getlist("image") + form.getlist("image[]")) > 1:
        raise ApiError(400, "One image can be started from, not several.", code="invalid_value", param="image")
    if lens.mode is None or not model.can_start:
        raise ApiError(404, _EXPLAINED, code="model_not_supported", param="lens.mode")
    if (lens.mode == "inpaint") != (asked.mask is not None):
        message = "'inpaint' needs a mask." if asked.mask is None else "'img2img' takes no mask; 'inpaint' does."
        raise ApiError(400, message, code="invalid_value", param="mask")
    start, size, body_hash = await unless_gone(request, _prepared(server, asked, lens, model, key))
    order = order_of(server, asked, lens, model=model, size=size, key=key, place=place, start=start)
    same = Same(idempotency_key, body_hash)
    return await deliver(server, request, order, "image_edit", same, stream=bool(asked.stream))


async def _prepared(
    server: Server, asked: EditForm, lens: EditLens, model: ModelInfo, key: Key
) -> tuple[StartPicture, tuple[int, int], bytes]:
    """What an edit starts from, its size, and a hash of all that was asked; the uploads themselves are let go."""
    uploads = [asked.image] if asked.mask is None else [asked.image, asked.mask]
    with server.preparing(key):
        async with server.decoding:
            files = [await upload.read() for upload in uploads]
            work = asyncio.create_task(asyncio.to_thread(_prepare, files, asked, lens, model, server.settings.bounds))
            try:
                return await asyncio.shield(work)
            finally:  # a client may go; its decoder still runs, and counts until it is done
                await asyncio.wait([work])


def _prepare(
    files: list[bytes], asked: EditForm, lens: EditLens, model: ModelInfo, bounds: Bounds
) -> tuple[StartPicture, tuple[int, int], bytes]:
    read = [read_upload(file, max_pixels=UPLOAD_PIXELS, max_bytes=bounds.max_upload_bytes) for file in files]
    picture_HW3 = read[0][0]
    stride = model.stride
    fitting = (picture_HW3.shape[0] // stride * stride, picture_HW3.shape[1] // stride * stride)
    height, width = size_of(asked.size, model, bounds, auto=fitting)
    start = StartPicture(
        pixels=images.fit(picture_HW3, height, width).tobytes(),
        strength=STRENGTH if lens.strength is None else lens.strength,
        mask=None if asked.mask is None else _mask(read[1][1], picture_HW3, height, width),
    )
    words = asked.model_dump_json(exclude_none=True, exclude={"image", "mask"}).encode()
    digests = b"".join(hashlib.sha256(part).digest() for part in (words, *files))
    return start, (height, width), hashlib.sha256(digests).digest()


def _mask(alpha_HW: np.ndarray | None, picture_HW3: np.ndarray, height: int, width: int) -> bytes:
    """OpenAI's masks are transparent where to redraw; ours are 255 there."""
    if alpha_HW is None:
        raise ApiError(400, "Nothing in the mask is transparent.", code="invalid_image", param="mask")
    if alpha_HW.shape != picture_HW3.shape[:2]:
        raise ApiError(400, "Mask and image have different sizes.", code="invalid_image", param="mask")
    free_HW = np.where(alpha_HW < 128, np.uint8(255), np.uint8(0))
    fitted_HW3 = images.fit(np.repeat(free_HW[..., None], 3, axis=-1), height, width)
    return np.where(fitted_HW3[..., 0] >= 128, np.uint8(255), np.uint8(0)).tobytes()
