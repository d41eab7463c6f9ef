"""Every route of the application, with every kind of key that is not good for it."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.routing import iter_route_contexts

from lens_core.errors import ConfigError
from lens_serve.admission.keys import add, revoke
from lens_serve.api.app import create_app
from lens_serve.api.auth import check_listen
from lens_serve.config import ListenSettings
from serve.live import live_server, settings_for

OPEN = {"/", "/static/{name}", "/health/live", "/health/ready"}
"""The page, and whether the server is there. Nothing else is for everybody."""

BAD = ["none", "empty", "not-bearer", "malformed", "unknown", "revoked", "expired"]


NAMES = ["images.example.org", "Studio.example.org:8443"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Headers by what is wrong with their key."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    good, _ = add(file, "good")
    admin, _ = add(file, "admin", scopes=["admin"])
    other, _ = add(file, "other", scopes=["metrics"])
    revoked, record = add(file, "revoked")
    revoke(file, record.id)
    expired, record = add(file, "expired", expires_days=1)
    stored = json.loads(file.read_text())
    for one in stored["keys"]:
        if one["id"] == record.id:
            one["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    file.write_text(json.dumps(stored))
    texts = {
        "empty": "Bearer",
        "not-bearer": f"Basic {good}",
        "malformed": "Bearer sk-1234",
        "unknown": "Bearer lens-" + 52 * "a",
        "revoked": f"Bearer {revoked}",
        "expired": f"Bearer {expired}",
        "wrong-scope": f"Bearer {other}",
        "good": f"Bearer {good}",
        "admin": f"bearer  {admin}",
    }
    return file, {"none": {}} | {name: {"authorization": text} for name, text in texts.items()}


@pytest.fixture(scope="module")
def guarded(keys, tiny_folder):
    file, _ = keys
    listen = {"port": 0, "metrics_port": 0, "keys": str(file), "allowed_hosts": NAMES}
    with live_server(settings_for(tiny_folder, listen=listen)) as live:
        yield live


@pytest.fixture(scope="module")
def routes(guarded):
    """(method, path as it was registered) of all routes; a new one cannot be forgotten here."""
    found = [
        (method, context.path)
        for context in iter_route_contexts(create_app(guarded.server).routes)
        for method in sorted(context.methods or ())
    ]
    assert {"/v1/images/generations", "/v1/images/edits", "/v1/models", "/openapi.json", *OPEN} <= {p for _, p in found}
    return found


def concrete(path):
    return path.replace("{name}", "app.js").replace("{model}", "tiny").replace("{id}", "0123456789abcdef")


@pytest.mark.parametrize("wrong", [*BAD, "wrong-scope"])
def test_no_route_lets_anybody_in_without_a_good_key(guarded, routes, keys, wrong):
    expected = 403 if wrong == "wrong-scope" else 401
    with guarded.http(headers=keys[1][wrong]) as client:
        for method, path in routes:
            if path not in OPEN:
                answer = client.request(method, concrete(path))
                assert answer.status_code == expected, (method, path)
                assert answer.headers["x-request-id"]
                if method != "HEAD":
                    code = "insufficient_scope" if expected == 403 else "invalid_api_key"
                    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("good", ["good", "admin"])
def test_a_good_key_opens_all_routes(guarded, routes, keys, good):
    with guarded.http(headers=keys[1][good]) as client:
        for method, path in routes:
            assert client.request(method, concrete(path)).status_code not in (401, 403), (method, path)
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


@pytest.mark.parametrize("wrong", BAD)
def test_the_page_and_the_health_are_for_everybody(guarded, keys, wrong):
    with guarded.http(headers=keys[1][wrong]) as client:
        for path in OPEN:
            assert client.get(concrete(path)).status_code == 200
        assert client.get("/health/ready").json() == {"status": "ready", "engines": None}


def test_what_is_next_to_an_open_path_is_not_open(guarded):
    with guarded.http() as client:
        for path in ("/nothing", "/static", "/static/a/b", "/static/%2e%2e/v1/models", "/health", "/health/live/x"):
            assert client.get(path).status_code == 401, path


def test_no_body_is_read_for_a_stranger(guarded):
    """The answer comes while the body has not."""
    head = b"POST /v1/images/edits HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=60) as client:
        client.sendall(head + b"content-length: 1000000\r\n\r\n")
        assert client.recv(64).startswith(b"HTTP/1.1 401 ")
    with guarded.http() as client:
        answer = client.post("/v1/images/generations", content=b"{", headers={"content-type": "application/json"})
        assert answer.status_code == 401


def test_a_key_is_revoked_while_the_server_runs(guarded, keys):
    text, record = add(keys[0], "guest")
    with guarded.http(headers={"authorization": f"Bearer {text}"}) as client:
        assert client.get("/v1/models").status_code == 200
        revoke(keys[0], record.id)
        assert client.get("/v1/models").status_code == 401


def test_readiness_tells_more_to_those_with_a_key(guarded, keys):
    with guarded.http(headers=keys[1]["good"]) as client:
        (engine,) = client.get("/health/ready").json()["engines"]
    assert engine["ready"] is True
    assert engine["device"] == "cpu"
    assert engine["restarts"] == 0


def test_metrics_need_a_key_of_their_own(guarded, keys):
    port = guarded.server.metrics.port
    with guarded.http() as client:
        for wrong in [*BAD, "good", "wrong-scope", "admin"]:
            expected = {"good": 403, "wrong-scope": 200, "admin": 200}.get(wrong, 401)
            answer = client.get(f"http://127.0.0.1:{port}/metrics", headers=keys[1][wrong])
            assert answer.status_code == expected, wrong


HOSTS = {
    "127.0.0.1": True,
    "localhost:8000": True,
    "LOCALHOST": True,
    "lens.localhost": True,
    "[::1]:8000": True,
    "192.168.1.7:8000": True,
    "images.example.org": True,
    "images.example.org:8000": True,
    "studio.example.org": True,
    "example.org": False,
    "localhost.example.org": False,
    "127.0.0.1.example.org": False,
    "xlocalhost": False,
    "": False,
    "[": False,
    "a b": False,
}


@pytest.mark.parametrize(("host", "known"), HOSTS.items())
def test_the_server_answers_to_its_names_only(guarded, host, known):
    """A page that makes its own name lead to this machine is not let in, not even to the page or the health."""
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=60) as client:
        client.sendall(f"GET /health/live HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        status = int(client.recv(64).split()[1])
    assert status == 200 if known else status in (400, 421)


ORIGINS = {
    None: True,
    "http://localhost:8000": True,
    "HTTP://LOCALHOST:8000": True,
    "http://images.example.org": True,
    "https://images.example.org": True,
    "https://images.example.org:443": True,
    "https://studio.example.org:8443": True,
    "http://images.example.org:8080": False,
    "https://images.example.org:8443": False,
    "https://images.example.org:80": False,
    "ftp://images.example.org": False,
    "https://studio.example.org": False,
    "http://studio.example.org:8000": False,
    "https://localhost:8000": False,
    "http://localhost": False,
    "http://localhost:3000": False,
    "http://example.org": False,
    "https://localhost:8000.example.org": False,
    "null": False,
    "http://[": False,
    "": False,
}


@pytest.mark.parametrize(("origin", "own"), ORIGINS.items())
def test_pages_of_other_sites_cannot_use_their_visitors_server(guarded, keys, origin, own):
    headers = keys[1]["good"] | {"host": "localhost:8000"} | ({} if origin is None else {"origin": origin})
    with guarded.http(headers=headers) as client:
        answer = client.post("/v1/images/edits", data={"prompt": "a star"}, files={"image": b""})
        assert (answer.status_code == 403) is not own
        assert client.get("/v1/models").status_code == 200  # without CORS headers, no page can read it
        assert "access-control-allow-origin" not in client.get("/v1/models").headers
        assert client.options("/v1/models").status_code == 405


SEEN = [
    ("https", "images.example.org", "https://images.example.org", True),
    ("https", "images.example.org", "http://images.example.org", False),
    ("http", "images.example.org", "https://images.example.org", True),  # the proxy does not tell of its TLS
    ("https", "localhost:8443", "https://localhost:8443", True),
    ("https", "localhost", "https://localhost:443", True),
    ("https", "localhost", "http://localhost", False),
    ("http", "[::1]:80", "http://[::1]", True),
    ("http", "[::1]:80", "http://[::1]:8000", False),
]


@pytest.mark.parametrize(("scheme", "host", "origin", "own"), SEEN)
def test_a_page_over_http_cannot_use_a_server_behind_tls(guarded, keys, scheme, host, origin, own):
    """A proxy on this machine says by which scheme it was asked."""
    headers = keys[1]["good"] | {"host": host, "origin": origin, "x-forwarded-proto": scheme}
    with guarded.http(headers=headers) as client:
        answer = client.post("/v1/images/edits", data={"prompt": "a star"}, files={"image": b""})
    assert (answer.status_code == 403) is not own


@pytest.mark.parametrize("name", ["images.example.org:https", "https://images.example.org", "", "a b", "x:70000"])
def test_names_that_are_none_are_told_at_the_start(name):
    with pytest.raises(ConfigError, match=r"listen\.allowed_hosts: ") as caught:
        check_listen(ListenSettings(allowed_hosts=["fine.example.org", name]))
    assert "\n" not in str(caught.value)


def test_forms_cannot_send_what_has_to_be_json(guarded, keys):
    """text/plain is what a page of another site could send without being asked first."""
    body = json.dumps({"prompt": "a star"})
    with guarded.http(headers=keys[1]["good"]) as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            answer = client.post("/v1/images/generations", content=body, headers={"content-type": kind})
            assert answer.status_code == 400
            assert "application/json" in answer.json()["error"]["message"]


def test_answers_cannot_be_misread_or_framed(guarded, keys):
    with guarded.http(headers=keys[1]["good"]) as client:
        for path in ("/v1/models", "/nothing", "/health/ready"):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert headers["cache-control"] == "no-store"
        assert "script-src 'self'" in client.get("/").headers["content-security-policy"]


def test_nor_can_what_is_answered_when_all_else_fails(guarded, keys, monkeypatch):
    async def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(guarded.server.gate, "check_prompt", broken)
    with guarded.http(headers=keys[1]["good"]) as client:
        answer = client.post("/v1/images/generations", json={"prompt": "a star"})
        usual = client.get("/v1/models")
    assert answer.json()["error"]["code"] == "internal"
    for name in ("x-content-type-options", "content-security-policy", "cache-control", "referrer-policy"):
        assert answer.headers[name] == usual.headers[name]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LocalHost"])
def test_loopback_needs_no_keys(host):
    check_listen(ListenSettings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_beyond_loopback_there_have_to_be_keys(host):
    check_listen(ListenSettings(host=host, keys="keys.json"))
    check_listen(ListenSettings(host=host, insecure=True))
    with pytest.raises(ConfigError, match=r"listen\.host: .*lens serve keys add NAME.*--insecure") as caught:
        check_listen(ListenSettings(host=host))
    assert "\n" not in str(caught.value)
