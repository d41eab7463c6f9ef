"""A real S3 server of our own (moto), and places to write to, as fixtures."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture(scope="session")
def s3_server():
    """A moto server on a free port of this machine, and the environment that makes s3fs talk to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
    }
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield environment
    process.terminate()
    process.wait()


@pytest.fixture(params=["folder", "s3"])
def root(request, tmp_path, monkeypatch):
    """An empty place to write to: a folder, then a bucket."""
    if request.param == "folder":
        yield str(tmp_path / "root")
    else:
        yield from in_bucket(request.getfixturevalue("s3_server"), monkeypatch)


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """An empty place in a bucket."""
    yield from in_bucket(s3_server, monkeypatch)


def in_bucket(environment, monkeypatch):
    import s3fs
    from fsspec.config import conf, set_conf_env

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    set_conf_env(conf)
    bucket = f"lens-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem().mkdir(bucket)
    yield f"s3://{bucket}/root"
    s3fs.S3FileSystem.clear_instance_cache()
    conf.pop("s3", None)


class Between:
    """A server between us and another one, that passes requests on and meddles; use it in a `with` block.

    Args:
        endpoint: of the other one.
        without: a header that is not passed on, as if that server had never heard of it.
        lose: how many answers to PUT requests do not come back.

    `given` has what was answered: method, path, and bytes of each body.
    """

    def __init__(self, endpoint, *, without=None, lose=0):
        self.left_to_lose = lose
        self.given = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(handler):
                body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                headers = {name: value for name, value in handler.headers.items() if name.lower() != without}
                other = http.client.HTTPConnection(endpoint.removeprefix("http://"))
                other.request(handler.command, handler.path, body, headers)
                answer = other.getresponse()
                content = answer.read()
                other.close()
                self.given.append((handler.command, handler.path, len(content)))
                if handler.command == "PUT" and self.left_to_lose:
                    self.left_to_lose -= 1
                    handler.close_connection = True
                    return
                handler.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"transfer-encoding", "content-length", "connection", "server", "date"}:
                        handler.send_header(name, value)
                length = answer.getheader("Content-Length") if handler.command == "HEAD" else len(content)
                handler.send_header("Content-Length", str(length or 0))
                handler.end_headers()
                handler.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

            def log_message(handler, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        endpoint_here = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {"AWS_ENDPOINT_URL": endpoint_here, "FSSPEC_S3_ENDPOINT_URL": endpoint_here}

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
