"""The HTTP face: routes, headers, limits, and the faults that happen on the wire."""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import struct
import uuid
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import ValidationError

from lens_caption.testing.openai_server.answers import error_body
from lens_caption.testing.openai_server.faults import ERRORS
from lens_caption.testing.openai_server.files import page
from lens_caption.testing.openai_server.model import ENDPOINTS, Refused
from lens_caption.testing.openai_server.schemas import BatchRequest, first_fault
from lens_caption.testing.openai_server.tokens import MODELS, facts_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from lens_caption.testing.openai_server.limits import Admission
    from lens_caption.testing.openai_server.model import Asked
    from lens_caption.testing.openai_server.server import FakeServer

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

__all__ = ["make_app"]

MAX_BODY_BYTES = 60 << 20
MAX_FILE_BYTES = 512_000_000
_SMALL_BODY = 16_000
_DRIPS = 20
_LATE_S = 1.0
_HTML = b"<html><head><title>502</title></head><body>a proxy was here</body></html>"
_LIFETIME_S = (3600, 2_592_000)


def make_app(server: FakeServer) -> web.Application:
    """The application of a server."""
    face = _Face(server)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[face.guard])
    for prefix in ("/v1", "/openai/v1"):
        app.router.add_post(f"{prefix}/chat/completions", face.ask)
        app.router.add_post(f"{prefix}/responses", face.ask)
        app.router.add_get(f"{prefix}/models", face.models)
        app.router.add_get(f"{prefix}/models/{{id:.+}}", face.model)
    for prefix in ("/v1", "/openai/v1", "/openai"):
        app.router.add_post(f"{prefix}/files", face.upload)
        app.router.add_get(f"{prefix}/files", face.files)
        app.router.add_get(f"{prefix}/files/{{id}}", face.file)
        app.router.add_delete(f"{prefix}/files/{{id}}", face.delete_file)
        app.router.add_get(f"{prefix}/files/{{id}}/content", face.content)
        app.router.add_post(f"{prefix}/batches", face.create_batch)
        app.router.add_get(f"{prefix}/batches", face.batches)
        app.router.add_get(f"{prefix}/batches/{{id}}", face.batch)
        app.router.add_post(f"{prefix}/batches/{{id}}/cancel", face.cancel_batch)
    app.router.add_post("/openai/deployments/{deployment}/chat/completions", face.ask)
    app.router.add_get("/_ledger", face.ledger)
    app.router.add_get("/_ledger/images", face.ledger_images)
    app.router.add_get("/_state", face.state)
    app.router.add_get("/_clock", face.clock)
    app.router.add_post("/_clock", face.clock)
    app.router.add_post("/_faults", face.faults)
    return app


class _Face:
    def __init__(self, server: FakeServer):
        self._server = server

    # --- around every request ---

    @property
    def guard(self) -> Any:
        """Checks the key, injects faults of files and batches, and makes every error one of the API."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path.startswith("/_"):
                try:
                    return await handler(request)
                except (ValueError, KeyError, TypeError) as error:
                    return _json(400, {"error": str(error)})
            answer = await self._safely(request, handler)
            if not answer.prepared:
                answer.headers["x-request-id"] = f"req_{uuid.uuid4().hex}"
            return answer

        return guard

    async def _safely(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        azure = self._server.azure
        if azure and (refusal := azure.refusal(request.path, request.query, request.headers, self._server.api_key)):
            return _json(*refusal)
        if not azure and not self._has_key(request):
            return _json(401, error_body("invalid_api_key", "Incorrect API key provided."))
        try:
            if "/files" in request.path or "/batches" in request.path:
                return await self._control(request, handler)
            return await handler(request)
        except Refused as refused:
            return _json(refused.status, azure.reworded(refused.body) if azure else refused.body)
        except web.HTTPException as error:
            return _json(error.status, error_body("not_found", f"{request.method} {request.path}: {error.reason}"))

    def _has_key(self, request: web.Request) -> bool:
        expected = self._server.api_key
        if expected is None:
            return True
        given = request.headers.get("api-key") or request.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), expected.encode())

    async def _control(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """A request to files or batches, and the fault that it meets."""
        fault = self._server.faults.for_control(f"{request.method} {request.path}")
        if fault == "504-late":
            await request.read()
            self._late = asyncio.create_task(_later(handler, request))
            return _error(fault)
        if fault in ERRORS:
            await request.release()
            return _error(fault)
        if fault == "html":
            return _html()
        if fault == "drop":
            return _dropped(request)
        answer = await handler(request)
        return _dropped(request) if fault == "drop-after" else answer

    # --- answers ---

    async def ask(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions` and `/v1/responses`."""
        server = self._server
        server.requests += 1
        server.in_flight += 1
        try:
            return await self._ask(request)
        finally:
            server.in_flight -= 1

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        server = self._server
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise Refused(413, "too_large", "the body is too large") from None
        asked = await self._read(request, body)
        if server.quota is not None and server.ledger.spent >= server.quota:
            return _error("quota")
        model = asked.prompt.model
        admission = server.limits.admit(model, asked.most_tokens)
        if admission.refusal is not None:
            return _json(429, error_body("rate_limit_exceeded", admission.refusal, admission.kind), admission.headers)
        fault = server.faults.for_request(asked.digest, asked.number, asked.prompt.tier)
        if fault == "hang":
            await asyncio.sleep(server.hang_s)
            return _dropped(request)
        if not fault.startswith(("429", "flex", "quota")):
            await asyncio.sleep(server.pause_before(asked.digest) + (server.slow_s if fault == "slow" else 0.0))
        if fault in ERRORS:
            server.limits.settle(model, asked.most_tokens)
            return _error(fault, admission.headers)
        if fault == "html":
            return _html()
        if fault == "truncated-json":
            return _answer(b'{"id": "x", "choices": [{"mess', admission.headers)
        if fault == "drop":
            return _dropped(request)
        return await self._answered(request, asked, fault, admission)

    async def _read(self, request: web.Request, body: bytes) -> Asked:
        """Parse and check a request; images that are decoded and large are so beside the loop."""
        try:
            value = json.loads(body)
        except ValueError:
            raise Refused(400, "invalid_json", "We could not parse the JSON body of your request.") from None
        path = request.path.replace("/openai/v1/", "/v1/")
        if "deployment" in request.match_info:
            path = "/v1/chat/completions"
            value = {"model": request.match_info["deployment"], **value} if isinstance(value, dict) else value
        assert path in ENDPOINTS
        if len(body) < _SMALL_BODY or self._server.model.settings.look == "header":
            return self._server.model.read(path, value)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._server.executor, self._server.model.read, path, value)

    async def _answered(
        self, request: web.Request, asked: Asked, fault: str, admission: Admission
    ) -> web.StreamResponse:
        server = self._server
        value = server.model.answer(asked, fault, custom_id=request.headers.get("X-Client-Request-Id", ""))
        usage = value["usage"]
        headers = admission.headers | server.limits.settle(
            asked.prompt.model, asked.most_tokens - usage["total_tokens"]
        )
        body = json.dumps(value, ensure_ascii=False).encode()
        if fault == "drop-after-billing":
            return _dropped(request)
        if fault == "truncated-json-after-billing":
            return _answer(body[: len(body) * 2 // 3], headers)
        if fault == "slow-drip":
            return await self._drip(request, body, headers)
        return _answer(body, headers)

    async def _drip(self, request: web.Request, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
        """The answer, in small pieces with pauses."""
        answer = web.StreamResponse(headers={**headers, "Content-Type": "application/json"})
        answer.content_length = len(body)
        await answer.prepare(request)
        size = len(body) // _DRIPS + 1
        starts = range(0, len(body), size)
        try:
            for start in starts:
                await asyncio.sleep(self._server.drip_s / len(starts))
                await answer.write(body[start : start + size])
        except ConnectionResetError:
            pass  # the client gave up, as clients may
        return answer

    # --- models ---

    async def models(self, request: web.Request) -> web.Response:
        """`GET /v1/models`."""
        settings = self._server.model.settings
        names = [
            name for name in dict.fromkeys([*MODELS, *settings.like, "test-model"]) if name not in settings.retired
        ]
        return _json(200, {"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, request: web.Request) -> web.Response:
        """`GET /v1/models/{id}`."""
        name = request.match_info["id"]
        if name in self._server.model.settings.retired:
            raise Refused(404, "model_not_found", f"The model '{name}' does not exist.", "model")
        return _json(200, self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        shutdown = facts_of(name, self._server.model.settings.like).shutdown
        return {"id": name, "object": "model", "created": 1, "owned_by": "lens", "shutdown_date": shutdown}

    # --- files ---

    async def upload(self, request: web.Request) -> web.Response:
        """`POST /v1/files`."""
        if not request.content_type.startswith("multipart/"):
            raise Refused(400, "invalid_request", "files are uploaded as multipart/form-data")
        path = self._server.files.new_path()
        fields: dict[str, str] = {}
        filename = None
        async for part in await request.multipart():
            if part.name == "file":  # type: ignore[union-attr]
                filename = part.filename or "upload"  # type: ignore[union-attr]
                with path.open("wb") as stream:
                    while chunk := await part.read_chunk(1 << 18):  # type: ignore[union-attr]
                        stream.write(chunk)
            else:
                fields[str(part.name)] = await part.text()  # type: ignore[union-attr]
        purpose = fields.pop("purpose", "")
        lifetime = fields.pop("expires_after[seconds]", None)
        fields.pop("expires_after[anchor]", None)
        if fields:
            raise Refused(400, "unknown_parameter", f"Unknown parameter: '{next(iter(fields))}'.")
        if filename is None or purpose not in {"batch", "vision", "user_data", "fine-tune", "assistants", "evals"}:
            raise Refused(400, "invalid_request", "an upload has a 'file' and a 'purpose', such as 'batch'")
        if lifetime is not None and not (lifetime.isdigit() and _LIFETIME_S[0] <= int(lifetime) <= _LIFETIME_S[1]):
            raise Refused(
                400, "invalid_value", f"'expires_after[seconds]' is from {_LIFETIME_S[0]} to {_LIFETIME_S[1]}"
            )
        limit = self._server.batches.settings.max_bytes if purpose == "batch" else MAX_FILE_BYTES
        size = path.stat().st_size
        if size > limit:
            path.unlink()
            raise Refused(
                400, "file_too_large", f"The file has {size} bytes; for '{purpose}' at most {limit} are allowed."
            )
        stored = self._server.files.add(path, filename, purpose, None if lifetime is None else int(lifetime))
        if self._server.azure:
            return _json(201, self._server.azure.uploaded(stored.to_json()))
        return _json(200, stored.to_json())

    async def files(self, request: web.Request) -> web.Response:
        """`GET /v1/files`."""
        items = self._server.files.all(request.query.get("purpose"))
        items = items[::-1] if request.query.get("order") == "asc" else items
        return self._page(request, items, default=10_000, most=10_000)

    async def file(self, request: web.Request) -> web.Response:
        """`GET /v1/files/{id}`."""
        found = _found(lambda: self._server.files.get(request.match_info["id"]).to_json(), request)
        return _json(200, self._server.azure.looked_at(found) if self._server.azure else found)

    async def delete_file(self, request: web.Request) -> web.Response:
        """`DELETE /v1/files/{id}`."""
        file_id = request.match_info["id"]
        _found(lambda: self._server.files.delete(file_id), request)
        return _json(200, {"id": file_id, "object": "file", "deleted": True})

    async def content(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/files/{id}/content`."""
        stored = _found(lambda: self._server.files.get(request.match_info["id"]), request)
        return web.FileResponse(stored.path, headers={"Content-Type": "application/octet-stream"})

    # --- batches ---

    async def create_batch(self, request: web.Request) -> web.Response:
        """`POST /v1/batches`."""
        try:
            wanted = BatchRequest.model_validate(await request.json())
        except ValidationError as error:
            where, message, unknown = first_fault(error)
            raise Refused(400, "unknown_parameter" if unknown else "invalid_value", message, where) from None
        except ValueError:
            raise Refused(400, "invalid_json", "We could not parse the JSON body of your request.") from None
        if self._server.azure and self._server.azure.is_pending(wanted.input_file_id):
            raise Refused(400, "invalidPayload", f"The file {wanted.input_file_id} is not processed yet.")
        try:
            return _json(200, await asyncio.to_thread(self._server.batches.create, wanted))
        except KeyError:
            raise Refused(400, "invalid_request", f"No such File object: {wanted.input_file_id}") from None
        except ValueError as error:
            raise Refused(400, "invalid_request", str(error)) from None

    async def batches(self, request: web.Request) -> web.Response:
        """`GET /v1/batches`."""
        return self._page(request, await asyncio.to_thread(self._server.batches.all), default=20, most=100)

    async def batch(self, request: web.Request) -> web.Response:
        """`GET /v1/batches/{id}`."""
        get = self._server.batches.get
        return _json(200, await asyncio.to_thread(_found, lambda: get(request.match_info["id"]), request))

    async def cancel_batch(self, request: web.Request) -> web.Response:
        """`POST /v1/batches/{id}/cancel`."""
        try:
            cancel = self._server.batches.cancel
            return _json(200, await asyncio.to_thread(_found, lambda: cancel(request.match_info["id"]), request))
        except ValueError as error:
            raise Refused(409, "invalid_request", str(error)) from None

    def _page(self, request: web.Request, items: list[dict[str, Any]], *, default: int, most: int) -> web.Response:
        limit = request.query.get("limit", str(default))
        if not limit.isdigit() or not 1 <= int(limit) <= most:
            raise Refused(400, "invalid_value", f"'limit' is from 1 to {most}", "limit")
        return _json(200, _found(lambda: page(items, request.query.get("after"), int(limit)), request))

    # --- the server's own ---

    async def ledger(self, request: web.Request) -> web.Response:
        """`GET /_ledger`."""
        ledger, query = self._server.ledger, request.query
        value = {"requests": self._server.requests} | ledger.totals()
        if {"entries", "image", "custom_id"} & set(query):
            entries = ledger.entries(image=query.get("image"), custom_id=query.get("custom_id"))
            value["entries"] = [entry.to_json() for entry in entries]
        return _json(200, value)

    async def ledger_images(self, request: web.Request) -> web.Response:
        """`GET /_ledger/images`."""
        return _json(200, dict(self._server.ledger.images()))

    async def state(self, request: web.Request) -> web.Response:
        """`GET /_state`."""
        server = self._server
        state = {
            "requests": server.requests,
            "in_flight": server.in_flight,
            "billed": len(server.ledger),
            "now": server.clock.now(),
            "faults": dict(server.faults.met),
        }
        return _json(200, state | {"batches": await asyncio.to_thread(server.batches.all)})

    async def clock(self, request: web.Request) -> web.Response:
        """`GET /_clock`, `POST /_clock`."""
        if request.method == "POST":
            await asyncio.to_thread(self._server.clock.advance, float((await request.json())["advance"]))
        return _json(200, {"now": self._server.clock.now(), "speed": self._server.clock.speed})

    async def faults(self, request: web.Request) -> web.Response:
        """`POST /_faults`."""
        wanted = await request.json()
        unknown = set(wanted) - {"script", "rate"}
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; there are script and rate")
        self._server.faults.extend(wanted.get("script", []))
        if "rate" in wanted:
            self._server.faults.set_rate(float(wanted["rate"]))
        return _json(200, dict(self._server.faults.met))


async def _later(handler: Handler, request: web.Request) -> None:
    await asyncio.sleep(_LATE_S)
    await handler(request)


def _found(look: Callable[[], Any], request: web.Request) -> Any:
    try:
        return look()
    except KeyError as error:
        raise Refused(404, "not_found", f"{request.path}: no such object: {error.args[0]}", "id") from None


def _json(status: int, value: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response(value, status=status, headers=headers)


def _answer(body: bytes, headers: Mapping[str, str]) -> web.Response:
    return web.Response(body=body, headers=headers, content_type="application/json")


def _error(fault: str, headers: Mapping[str, str] | None = None) -> web.Response:
    status, code, message = ERRORS[fault]
    asked = {
        "429-retry-after": {"retry-after": "1"},
        "429-retry-after-ms": {"retry-after-ms": "200"},
        "429-exhausted": {"retry-after": "1"},
    }.get(fault, {})
    kind = "server_error" if status >= 500 else {"rate_limit_exceeded": "requests"}.get(code, code)
    return _json(status, error_body(code, message, kind), {**(headers or {}), **asked})


def _html() -> web.Response:
    return web.Response(body=_HTML, content_type="text/html")


def _dropped(request: web.Request) -> web.Response:
    """Reset the connection."""
    transport = request.transport
    if transport is not None:
        # Linger 0 turns the close into a reset, as a crashed proxy would.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response(status=500)
