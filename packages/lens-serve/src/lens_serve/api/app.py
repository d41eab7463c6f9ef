"""The FastAPI application of a server: its routes, how errors look, and a document that says what is true of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lens_core import __version__
from lens_serve.admission.admission import Refused
from lens_serve.api import edits, generations, health, jobs, models
from lens_serve.api.answers import ClientGoneError
from lens_serve.api.auth import Doorkeeper
from lens_serve.api.errors import ApiError, answer, from_validation, to_api_error
from lens_serve.api.outermost import BodyLimit, Outermost
from lens_serve.engine.events import EngineError
from lens_serve.images.sign import SignError
from lens_serve.images.store import StoreError
from lens_serve.images.upload import UploadError
from lens_serve.safety.gate import Unsafe
from lens_serve.web import routes as web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lens_serve.config import Bounds
    from lens_serve.server import Server

__all__ = ["create_app"]

EDITS = "/v1/images/edits"

_CODES = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "body_too_large"}
"""Of what FastAPI and Starlette refuse by themselves; any other is a body that they cannot read."""


def create_app(server: Server) -> FastAPI:
    """The application; the server starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await server.start()
            yield
        finally:
            await server.stop()

    app = _Lens(
        title="Lens",
        summary="Images from text, by OpenAI's Images API.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.server = server
    for module in (generations, edits, models, jobs, health, web):
        app.include_router(module.router)
    for foreseen in (ApiError, Refused, Unsafe, EngineError, UploadError, StoreError, SignError):
        app.add_exception_handler(foreseen, _foreseen)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientGoneError, _gone)
    bounds = server.settings.bounds
    app.add_middleware(BodyLimit, limits={EDITS: bounds.max_upload_bytes}, otherwise=bounds.max_body_bytes)
    app.add_middleware(Doorkeeper, listen=server.settings.listen)
    app.add_middleware(Outermost, metrics=server.metrics, traces=server.traces)
    return app


class _Lens(FastAPI):
    """Its document tells the bounds of this server, not those that no server can lift."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            for unused in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(unused, None)
            _tell_bounds(document["components"]["schemas"], self.state.server.settings.bounds)
            for path in document["paths"].values():
                for operation in path.values():
                    _tell_truth(operation)
        return super().openapi()


def _tell_bounds(schemas: dict[str, Any], bounds: Bounds) -> None:
    maxima: dict[str, dict[str, Any]] = {
        "n": {"maximum": bounds.max_images},
        "prompt": {"maxLength": bounds.max_prompt_chars},
        "negative_prompt": {"maxLength": bounds.max_prompt_chars},
        "steps": {"maximum": bounds.max_steps},
        "guidance": {"maximum": bounds.max_guidance},
    }
    for name in ("Generation", "GenerationLens", "EditForm", "EditLens"):
        for field, limits in maxima.items():
            for kind in _kinds(schemas.get(name, {}).get("properties", {}).get(field, {})):
                if kind.get("type") != "null":
                    kind.update(limits)


def _kinds(schema: dict[str, Any]) -> list[dict[str, Any]]:
    kinds: list[dict[str, Any]] = schema.get("anyOf", [schema])
    return kinds


def _tell_truth(operation: dict[str, Any]) -> None:
    """What FastAPI cannot know: there are no 422s here, any route may turn a stranger away, and images also stream."""
    responses = operation["responses"]
    responses.pop("422", None)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    responses["421"] = {"description": "The server does not go by this name.", "content": error}
    if "requestBody" in operation:
        responses["408"] = {"description": "The body did not come in time.", "content": error}
        responses["413"] = {"description": "The body is too large.", "content": error}
    for response in responses.values():
        response.setdefault("headers", {})["x-request-id"] = {"schema": {"type": "string"}, "required": True}
        for content in list(response.get("content", {}).values()):
            match content.get("schema"):
                case {"anyOf": [answered, {"$ref": "#/components/schemas/StreamEvent"} as event]}:
                    stream = {"itemSchema": _event(event)}
                    response["content"] = {"application/json": {"schema": answered}, "text/event-stream": stream}
                case {"$ref": "#/components/schemas/StreamEvent"} as event:
                    response["content"] = {"text/event-stream": {"itemSchema": _event(event)}}


def _event(data: dict[str, Any]) -> dict[str, Any]:
    """An event of a stream, as OpenAPI 3.2 describes it."""
    data = {"oneOf": [data, {"$ref": "#/components/schemas/ErrorAnswer"}]}
    text = {"type": "string"}
    return {
        "type": "object",
        "properties": {
            "event": text,
            "id": text,
            "data": {**text, "contentMediaType": "application/json", "contentSchema": data},
        },
        "required": ["event", "id", "data"],
    }


async def _foreseen(_: Request, error: Exception) -> Response:
    told = to_api_error(error)
    assert told is not None
    return answer(told)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return answer(from_validation(error.errors()))


async def _http(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, and what FastAPI and Starlette refuse by themselves."""
    assert isinstance(error, HTTPException)
    messages = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.method} is not allowed here.",
    }
    message = messages.get(error.status_code, f"{error.detail}.")
    code = _CODES.get(error.status_code, "invalid_value")
    return answer(ApiError(error.status_code, message, code=code, headers=error.headers))


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # for the log; nobody reads it
