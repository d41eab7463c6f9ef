"""A chat endpoint on this machine that answers as it is told, well or badly; it keeps what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, *, finish_reason="stop", **message):
    """The body of an answer; as little of it as the smaller servers send."""
    message = {"role": "assistant", "content": text, **message}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}).encode()


class ChatServer:
    """`reply` gives status, content type and an iterable of pieces for each request's JSON."""

    def __init__(self):
        self.asked = []
        self.keys = []
        self.reply = lambda body: (200, "application/json", [completion("A red circle on a plain white ground.")])

    def says(self, *pieces, status=200, kind="application/json"):
        self.reply = lambda body: (status, kind, pieces)

    @contextlib.contextmanager
    def running(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append((self.path, body))
                server.keys.append(self.headers["authorization"])
                status, kind, pieces = server.reply(body)
                self.send_response(status)
                self.send_header("content-type", kind)
                self.end_headers()
                with contextlib.suppress(OSError):  # whoever asked has gone
                    for piece in pieces:
                        self.wfile.write(piece)
                        self.wfile.flush()

            def log_message(self, *arguments):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
            thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            self.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
            try:
                yield self
            finally:
                http.shutdown()
                thread.join()
