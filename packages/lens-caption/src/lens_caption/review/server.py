"""The review page's server: this machine only, one token per run, nothing that another site could make a browser do.

- It listens on 127.0.0.1, and answers only requests whose `Host` says so: a name that someone points at this address
  (DNS rebinding) is refused.
- The page itself holds no data. All data need the run's token in the `Authorization` header; no cookie is ever set, so
  a browser sends nothing by itself, and a page elsewhere can neither read nor change anything.
- The token is in the address after `#`, which browsers do not send; the page takes it from there and removes it.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import TYPE_CHECKING, Any, get_args

from lens_caption.review.decisions import Action
from lens_caption.review.session import MAX_TEXT
from lens_core.errors import ImageError, LensError

if TYPE_CHECKING:
    from lens_caption.review.session import Session

__all__ = ["ReviewServer"]

_PAGE = {
    "/": ("review.html", "text/html"),
    "/review.js": ("review.js", "text/javascript"),
    "/review.css": ("review.css", "text/css"),
}
_MAX_BODY = 256 << 10
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ReviewServer(ThreadingHTTPServer):
    """Serves one session on a port of 127.0.0.1 until it is shut down.

    Args:
        session: what is reviewed.
        port: 0 takes any free one.
    """

    daemon_threads = True

    def __init__(self, session: Session, *, port: int = 0):
        self.session = session
        self.token = secrets.token_urlsafe(32)
        super().__init__(("127.0.0.1", port), _Handler)
        self.origin = f"http://127.0.0.1:{self.server_port}"
        self.hosts = {f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"}

    @property
    def url(self) -> str:
        """Where the page is, with the token."""
        return f"{self.origin}/#{self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up in the middle is nobody's mistake."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    def __init__(self, status: int, reason: str):
        self.status = status
        super().__init__(reason)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version = "lens"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, act: Any) -> None:
        try:
            self._check_host()
            act()
        except _Refused as refused:
            self._send_json({"error": str(refused)}, refused.status)
        except LensError as error:
            self._send_json({"error": str(error)}, 500)

    def _get(self) -> None:
        if self.path in _PAGE:
            name, kind = _PAGE[self.path]
            data = (resources.files(__package__) / "page" / name).read_bytes()
            return self._send(data, f"{kind}; charset=utf-8")
        self._check_token()
        match self.path.split("/")[1:]:
            case ["api", "overview"]:
                return self._send_json(self.server.session.overview())
            case ["api", "items", number]:
                return self._send_json(self._of(self.server.session.item, number))
            case ["api", "pictures", number]:
                try:
                    return self._send(self._of(self.server.session.picture, number), "image/jpeg")
                except ImageError as error:
                    raise _Refused(422, f"the image cannot be shown: {error}") from error
        raise _Refused(404, "there is nothing here")

    def _post(self) -> None:
        body = self._body()
        self._check_token()
        if self.headers.get("Origin") not in {None, *(f"http://{host}" for host in self.server.hosts)}:
            raise _Refused(403, "the request comes from another site")
        match self.path.split("/")[1:]:
            case ["api", "items", number, "decision"]:
                action, text = self._decision(body)
                self._of(lambda place: self.server.session.decide(place, action, text), number)
                return self._send_json(self.server.session.overview())
        raise _Refused(404, "there is nothing here")

    def _decision(self, body: bytes) -> tuple[Action, str]:
        if self.headers.get_content_type() != "application/json":
            raise _Refused(415, "a decision is JSON")
        try:
            value = json.loads(body)
            action, text = value["action"], value.get("text", "")
            text.encode()  # half a surrogate pair is no text
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _Refused(400, "a decision is an object with 'action' and, for an edit, 'text'") from error
        if action not in get_args(Action):
            raise _Refused(400, f"an action is one of {', '.join(get_args(Action))}")
        text = text.strip()
        if action == "edit" and not 0 < len(text) <= MAX_TEXT:
            raise _Refused(400, f"an edited caption has 1 to {MAX_TEXT} characters; to have none, reject it")
        return action, text

    def _of(self, function: Any, number: str) -> Any:
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise _Refused(404, "there is nothing here")
        try:
            return function(int(number))
        except IndexError as error:
            raise _Refused(404, "there is no caption of that number") from error

    def _body(self) -> bytes:
        """The body is read even if the request is refused: the connection stays in step."""
        length = self.headers.get("Content-Length", "")
        if (
            not (length.isascii() and length.isdigit())
            or int(length) > _MAX_BODY
            or "Transfer-Encoding" in self.headers
        ):
            self.close_connection = True
            raise _Refused(413 if length.isdigit() else 411, f"a body of known length, at most {_MAX_BODY} bytes")
        return self.rfile.read(int(length))

    def _check_host(self) -> None:
        if self.headers.get_all("Host") is None or self.headers.get_all("Host") not in [
            [host] for host in self.server.hosts
        ]:
            self.close_connection = True
            raise _Refused(421, "this server answers to 127.0.0.1 only")

    def _check_token(self) -> None:
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            raise _Refused(401, "the address in the terminal holds the token of this run; open that one")

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value, ensure_ascii=False).encode(), "application/json; charset=utf-8", status)

    def _send(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal belongs to the person who reviews."""
