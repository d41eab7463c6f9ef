"""`GET /v1/models`: what is served, with sizes and bounds, so that no client need guess."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, Request

from lens_serve.api.auth import ImagesKey  # noqa: TC001 (FastAPI reads annotations at run time)
from lens_serve.api.errors import answers
from lens_serve.api.orders import min_side, model_of
from lens_serve.api.schemas import ModelAnswer, ModelBounds, ModelLens, ModelsAnswer

if TYPE_CHECKING:
    from lens_serve.config import ServeSettings
    from lens_serve.engine.messages import ModelInfo
    from lens_serve.server import Server

__all__ = ["router"]

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses=answers(401, 403, 503))
async def list_models(request: Request, key: ImagesKey) -> ModelsAnswer:
    """All models; the first is what requests get that name none."""
    server: Server = request.app.state.server
    names = [model.name for model in server.settings.models]
    return ModelsAnswer(data=[_describe(model_of(server, name), server.settings) for name in names])


@router.get("/v1/models/{model}", responses=answers(400, 401, 403, 404, 503))
async def one_model(model: Annotated[str, Path(max_length=64)], request: Request, key: ImagesKey) -> ModelAnswer:
    """One model."""
    server: Server = request.app.state.server
    return _describe(model_of(server, model), server.settings)


def _describe(model: ModelInfo, settings: ServeSettings) -> ModelAnswer:
    bounds = settings.bounds
    return ModelAnswer(
        id=model.name,
        created=model.created,
        owned_by="lens",
        lens=ModelLens(
            size=f"{model.width}x{model.height}",
            steps=model.steps,
            guidance=model.guidance,
            bounds=ModelBounds(
                min_side=min_side(model, bounds),
                max_side=bounds.max_side,
                max_pixels=bounds.max_pixels,
                multiple_of=model.stride,
                max_steps=bounds.max_steps,
                max_images=bounds.max_images,
                max_guidance=bounds.max_guidance,
                max_prompt_chars=bounds.max_prompt_chars,
            ),
            loras=list(model.loras),
            tiers=list(model.tiers),
            tier=settings.engine.tier,
            modes=["img2img", "inpaint"] if model.can_start else [],
            rewriter=settings.rewrite.rewriter is not None,
            rewrite=settings.rewrite.rewriter is not None and settings.rewrite.default,
            dtype=model.dtype,
            licence=model.licence,
            hash=model.hash,
        ),
    )
