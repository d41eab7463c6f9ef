"""HTTP to one endpoint: what counts as sent, and who gets to see the key and the proxy's password."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lens_caption.engine.client import Client, NotSentError
from lens_caption.engine.request import Endpoint
from lens_caption.testing.openai_server import FakeServer
from lens_core.errors import LensError, StorageError

KEYS = {"Authorization": "Bearer sk-secret", "api-key": "sk-secret"}
BOB = "Basic Ym9iOmh1bnQvZXIy"  # bob:hunt/er2


@pytest.fixture
def proxy():
    """A proxy that opens no tunnel, and answers plain requests itself; what it was told is in `heard`."""

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self):
            heard.append(dict(self.headers))
            self.send_response(407)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            heard.append(dict(self.headers))
            answer = json.dumps({"asked": self.path}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    heard = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.heard, server.address = heard, f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever).start()
    yield server
    server.shutdown()
    server.server_close()


def post(url):
    async def ask():
        async with Client(Endpoint(url=url, model="m", headers=KEYS, timeout_s=20)) as client:
            return await client.post("/chat/completions", b"{}")

    return asyncio.run(ask())


@pytest.mark.parametrize("user", ["bob:hunt%2Fer2@", ""])
def test_a_proxy_that_refuses_gets_no_key_and_shows_no_password(proxy, monkeypatch, user):
    monkeypatch.setenv("https_proxy", f"http://{user}{proxy.address}")
    with pytest.raises(NotSentError) as refusal:
        post("https://api.example.com/v1")
    assert "407" in str(refusal.value)
    assert "bob" not in str(refusal.value)
    assert "hunt" not in str(refusal.value)
    (heard,) = proxy.heard
    assert heard.get("Proxy-Authorization") == (BOB if user else None)
    assert "sk-secret" not in str(heard)


@pytest.mark.parametrize("user", ["bob:hunt%2Fer2@", ""])
def test_a_plain_request_goes_through_the_proxy_with_both_keys(proxy, monkeypatch, user):
    monkeypatch.setenv("http_proxy", f"http://{user}{proxy.address}")
    reply = post("http://api.example.com/v1")
    assert reply.json == {"asked": "http://api.example.com/v1/chat/completions"}
    (heard,) = proxy.heard
    assert heard.get("Proxy-Authorization") == (BOB if user else None)
    assert heard["Authorization"] == "Bearer sk-secret"


def test_nobody_at_the_proxys_address_shows_no_password(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://bob:hunter2@127.0.0.1:1")
    with pytest.raises(NotSentError) as refusal:
        post("https://api.example.com/v1")
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "value", ["http://bob:hun/ter2@proxy:3128", "bob:hunter2@proxy:3128", "socks5://bob:hunter2@a:1"]
)
def test_what_is_no_address_of_a_proxy_is_one_line_without_it(monkeypatch, value):
    monkeypatch.setenv("https_proxy", value)
    with pytest.raises(LensError) as refusal:
        post("https://api.example.com/v1")
    assert str(refusal.value) == "https_proxy is set, but to no address such as http://user:password@host:3128"


def test_a_full_disk_is_not_the_servers_fault(tmp_path):
    (tmp_path / "in.jsonl").write_text("{}\n")

    async def ask(server):
        async with Client(Endpoint(url=server.url, model="m")) as client:
            made = await client.upload("/files", tmp_path / "in.jsonl", {"purpose": "batch"})
            await client.download(f"/files/{made.json['id']}/content", Path("/dev/full"))

    with FakeServer() as server, pytest.raises(StorageError, match="/dev/full cannot be written: No space left"):
        asyncio.run(ask(server))
