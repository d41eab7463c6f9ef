"""A fake OpenAI server on a real socket, for tests and for rehearsing a pipeline without a bill.

It decodes every image and derives the caption from its pixels, so that an answer about the wrong image shows; it
refuses requests that the real API would refuse; it keeps a ledger of what it billed for; and it fails on request.

    python -m lens_caption.testing.openai_server --port 8000

    with OpenAIServer(faults=["429", "ok"]) as server:
        ...  # base_url=server.url; server.ledger has an entry per billed answer
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lens_core.errors import ImageError
from lens_core.images import decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["FAULTS", "LedgerEntry", "OpenAIServer", "caption_of", "main"]

FAULTS = (
    "ok",
    "429",
    "429-retry-after",
    "429-retry-after-ms",
    "quota",
    "500",
    "slow",
    "drop",
    "html",
    "truncated-json",
    "refusal",
    "refusal-prose",
    "content-filter",
    "length",
    "empty",
    "400",
)
"""What a request may meet, in the order given to the server; `ok` answers properly."""

MAX_BODY_BYTES = 60 << 20
SLOW_S = 1.0


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One billed answer: which image (sha256 of the JPEG received), and the tokens."""

    image: str
    model: str
    input_tokens: int
    output_tokens: int
    outcome: str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ImageUrl(_Strict):
    url: str
    detail: Literal["low", "high", "auto"] = "auto"


class _ChatText(_Strict):
    type: Literal["text"]
    text: str


class _ChatImage(_Strict):
    type: Literal["image_url"]
    image_url: _ImageUrl


class _ChatMessage(_Strict):
    role: Literal["user", "system", "developer"]
    content: list[_ChatText | _ChatImage]


class _ChatRequest(_Strict):
    model: str = Field(min_length=1)
    messages: list[_ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, gt=0)
    max_completion_tokens: int | None = Field(None, gt=0)
    temperature: float | None = Field(None, ge=0, le=2)

    def parts(self) -> tuple[str, list[str]]:
        content = [part for message in self.messages for part in message.content]
        text = " ".join(part.text for part in content if isinstance(part, _ChatText))
        return text, [part.image_url.url for part in content if isinstance(part, _ChatImage)]


class _InputText(_Strict):
    type: Literal["input_text"]
    text: str


class _InputImage(_Strict):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["low", "high", "auto"]


class _InputMessage(_Strict):
    role: Literal["user", "system", "developer"]
    content: list[_InputText | _InputImage]


class _ResponsesRequest(_Strict):
    model: str = Field(min_length=1)
    input: list[_InputMessage] = Field(min_length=1)
    max_output_tokens: int | None = Field(None, gt=0)
    temperature: float | None = Field(None, ge=0, le=2)

    def parts(self) -> tuple[str, list[str]]:
        content = [part for message in self.input for part in message.content]
        text = " ".join(part.text for part in content if isinstance(part, _InputText))
        return text, [part.image_url for part in content if isinstance(part, _InputImage)]


class OpenAIServer:
    """The server, as a context manager; it listens on this machine only.

    Args:
        port: 0 takes a free one.
        api_key: if given, requests must carry it.
        faults: what successive requests meet, from `FAULTS`; after the last one, all is well.
        delay_s: pause before every answer.
    """

    def __init__(self, *, port: int = 0, api_key: str | None = None, faults: Iterable[str] = (), delay_s: float = 0.0):
        self.ledger: list[LedgerEntry] = []
        self.requests = 0
        self.api_key = api_key
        self.delay_s = delay_s
        self._faults = iter(list(faults))
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
        self._server.daemon_threads = True
        self._server.fake = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """What to set as `base_url`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> OpenAIServer:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self) -> str:
        """What the next request meets."""
        with self._lock:
            self.requests += 1
            return next(self._faults, "ok")

    def bill(self, entry: LedgerEntry) -> None:
        """Write an answer into the ledger."""
        with self._lock:
            self.ledger.append(entry)


def caption_of(pixels_HW3: Any) -> str:
    """The caption that the server gives an image: its size, and the mean colour of each of its quarters."""
    height, width = pixels_HW3.shape[:2]
    quarters = [
        pixels_HW3[row * height // 2 : (row + 1) * height // 2, column * width // 2 : (column + 1) * width // 2]
        for row in range(2)
        for column in range(2)
    ]
    means = [tuple(round(float(value)) for value in part.mean(axis=(0, 1))) for part in quarters if part.size]
    return f"a picture of {width} by {height} pixels whose quarters have the mean colours " + ", ".join(
        f"{red} {green} {blue}" for red, green, blue in means
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Small answers should leave at once.
    wbufsize = -1

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._reply(200, {"object": "list", "data": [{"id": "test-model", "object": "model", "owned_by": "lens"}]})
        else:
            self._fail(404, "not_found", f"there is no {self.path}")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= MAX_BODY_BYTES:
            self._fail(413, "too_large", "the body is empty or too large")
            return
        body = self.rfile.read(length)
        kinds: dict[str, type[_ChatRequest] | type[_ResponsesRequest]] = {
            "/v1/chat/completions": _ChatRequest,
            "/v1/responses": _ResponsesRequest,
        }
        if self.path not in kinds:
            self._fail(404, "not_found", f"there is no {self.path}")
            return
        if self._fake.api_key and self.headers.get("Authorization") != f"Bearer {self._fake.api_key}":
            self._fail(401, "invalid_api_key", "Incorrect API key provided.")
            return
        fault = self._fake.next_fault()
        time.sleep(self._fake.delay_s)
        if self._transport_fault(fault):
            return
        try:
            request = kinds[self.path].model_validate_json(body)
            text, images = request.parts()
            received = [_decoded(url) for url in images]
        except ValidationError as error:
            first = error.errors()[0]
            self._fail(400, "invalid_request", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
            return
        except (ImageError, ValueError) as error:
            self._fail(400, "invalid_image", f"the image cannot be used: {error}")
            return
        if len(received) != 1 or not text.strip():
            self._fail(400, "invalid_request", "send one text and one image")
            return
        if request.model == "no-such-model":
            self._fail(404, "model_not_found", "The model does not exist.")
            return
        self._answer(request, *received[0], text, fault)

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""

    @property
    def _fake(self) -> OpenAIServer:
        return self.server.fake  # type: ignore[attr-defined, no-any-return]

    def _transport_fault(self, fault: str) -> bool:
        """Answer with a fault that has nothing to do with the request; False if there is none."""
        if fault.startswith("429"):
            headers = {"429-retry-after": {"Retry-After": "1"}, "429-retry-after-ms": {"retry-after-ms": "200"}}
            self._fail(429, "rate_limit_exceeded", "Rate limit reached.", headers.get(fault, {}))
        elif fault == "quota":
            self._fail(429, "insufficient_quota", "You exceeded your current quota.")
        elif fault == "500":
            self._fail(500, "server_error", "The server had an error.")
        elif fault == "400":
            self._fail(400, "invalid_image", "The image is not allowed.")
        elif fault == "html":
            self._send(200, b"<html><body>a proxy was here</body></html>", "text/html")
        elif fault == "truncated-json":
            self._send(200, b'{"id": "x", "choices": [{"mess', "application/json")
        elif fault == "drop":
            # Linger 0 turns the close into a reset, as a crashed proxy would.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif fault == "slow":
            time.sleep(SLOW_S)
            return False
        else:
            return False
        return True

    def _answer(
        self, request: _ChatRequest | _ResponsesRequest, digest: str, pixels: Any, instruction: str, fault: str
    ) -> None:
        caption = caption_of(pixels)
        texts = {
            "refusal-prose": "I'm sorry, I can't help with that.",
            "empty": "",
            "refusal": "",
            "content-filter": "",
        }
        text = texts.get(fault, caption[:20] if fault == "length" else caption)
        height, width = pixels.shape[:2]
        usage = (len(instruction.split()) + -(-width // 32) * -(-height // 32), len(text.split()))
        self._fake.bill(
            LedgerEntry(image=digest, model=request.model, input_tokens=usage[0], output_tokens=usage[1], outcome=fault)
        )
        make = _chat_answer if isinstance(request, _ChatRequest) else _responses_answer
        self._reply(200, make(request.model, f"{digest[:12]}-{len(self._fake.ledger)}", text, usage, fault))

    def _fail(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self._reply(status, {"error": {"message": message, "type": code, "param": None, "code": code}}, headers)

    def _reply(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client gave up, as clients may


def _decoded(url: str) -> tuple[str, Any]:
    """sha256 of the image's bytes, and its pixels; raises `ValueError` or `ImageError`."""
    head, comma, payload = url.partition(",")
    if not comma or head not in {f"data:image/{kind};base64" for kind in ("jpeg", "png", "webp", "gif")}:
        raise ValueError("only base64 data URLs of jpeg, png, webp and gif images")
    try:
        data = base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    return hashlib.sha256(data).hexdigest(), decode(data)


def _chat_answer(model: str, number: str, text: str, usage: tuple[int, int], fault: str) -> dict[str, Any]:
    reason = {"length": "length", "empty": "length", "content-filter": "content_filter"}.get(fault, "stop")
    refusal = "I can't describe this." if fault == "refusal" else None
    message = {"role": "assistant", "content": text or None, "refusal": refusal}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": f"{model}-2026-01-01",
        "service_tier": "default",
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)},
    }


def _responses_answer(model: str, number: str, text: str, usage: tuple[int, int], fault: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    if fault == "refusal":
        part = {"type": "refusal", "refusal": "I can't describe this."}
    reason = {"length": "max_output_tokens", "empty": "max_output_tokens", "content-filter": "content_filter"}.get(
        fault
    )
    message = {"id": f"msg-{number}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": f"resp-{number}",
        "object": "response",
        "created_at": int(time.time()),
        "model": f"{model}-2026-01-01",
        "service_tier": "default",
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "error": None,
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {"input_tokens": usage[0], "output_tokens": usage[1], "total_tokens": sum(usage), **details},
    }


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--faults", default="", help=f"comma-separated, from: {', '.join(FAULTS)}")
    options = parser.parse_args()
    faults = [fault for fault in options.faults.split(",") if fault]
    unknown = [fault for fault in faults if fault not in FAULTS]
    if unknown:
        parser.error(f"unknown fault {unknown[0]!r}")
    with OpenAIServer(port=options.port, api_key=options.api_key, faults=faults, delay_s=options.delay) as server:
        print(f"listening on {server.url}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"{server.requests} requests, {len(server.ledger)} billed")


if __name__ == "__main__":
    main()
