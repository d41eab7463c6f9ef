"""Connections that take up room: silent, endless, deaf and too many."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import uvicorn

from lens_serve import connection
from lens_serve.connection import Connection
from serve.live import WAIT_S, wait_until

REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
CHUNKED = b"POST %s HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"

ASKED = []


async def app(scope, receive, send):
    """Answers with as many bytes as the path says; `/` reads the body first."""
    ASKED.append(scope["path"])
    size = int(scope["path"].strip("/") or 2)
    if scope["path"] == "/":
        while (await receive()).get("more_body"):
            pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    await send({"type": "http.response.body", "body": bytes(size)})


@pytest.fixture
def patience():
    """Of the server, in seconds."""
    return 0.5


@pytest.fixture
def web(monkeypatch, patience):
    """A server whose patience is short."""
    for name in ("HEAD_S", "IDLE_S", "DEAF_S"):
        monkeypatch.setattr(connection, name, patience)
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 3)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, http=Connection, ws="none", lifespan="off", timeout_keep_alive=60)
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: web.started, "the server")
    yield web
    web.should_exit = True
    thread.join(WAIT_S)
    listener.close()


@pytest.fixture
def port(web):
    """Where it listens."""
    return web.servers[0].sockets[0].getsockname()[1]


def connect(port, receive_buffer=None):
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(WAIT_S)
    client.connect(("127.0.0.1", port))
    return client


def is_ended(client):
    """Whether the server has ended it, waited for."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


def answer(client):
    """The head and body of an answer of two bytes."""
    got = b""
    while not got.endswith(b"\r\n\r\n\0\0"):
        piece = client.recv(1000)
        assert piece, got
        got += piece
    return got


@pytest.mark.parametrize(
    "sent",
    [b"", b"\r\n", b"POST / HT", REQUEST[:-2], REQUEST + b"xy" + b"\r\n"],
    ids=["silent", "an empty line", "half a line", "half a head", "silent after an answer"],
)
def test_who_sends_no_request_is_left(port, sent):
    with connect(port) as client:
        client.sendall(sent)
        assert is_ended(client)


@pytest.mark.parametrize("patience", [WAIT_S])
@pytest.mark.parametrize("line", [b"a: " + b"b" * 1000 + b"\r\n", b"a:\r\n"], ids=["long lines", "short lines"])
@pytest.mark.parametrize(
    "begun",
    [b"GET / HTTP/1.1\r\nhost: x\r\n", CHUNKED % b"/" + b"1\r\na\r\n0\r\n", CHUNKED % b"/2" + b"1\r\na\r\n0\r\n"],
    ids=["a head", "what follows a body", "what follows a body that nobody reads"],
)
def test_heads_end(port, begun, line):
    """And so does what may follow a body; more is sent than fits between client and server."""
    with connect(port) as client:
        client.sendall(begun)
        with pytest.raises(ConnectionError):
            client.sendall(line * ((16 << 20) // len(line)))


def test_a_head_has_so_many_lines(port):
    with connect(port) as client:
        for _ in range(2):
            client.sendall(b"GET /2 HTTP/1.1\r\n" + b"a:\r\n" * 200 + b"\r\n")
            assert b"200 OK" in answer(client)
        client.sendall(b"GET /2 HTTP/1.1\r\n" + b"a:\r\n" * 201 + b"\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("patience", [2.0])
def test_requests_one_after_the_other_and_all_at_once_are_answered(port, patience):
    """A body of any length and time is not the connection's business, nor are several requests in one piece."""
    with connect(port) as client:
        for pause_s in (1.1 * patience, 0.0, 0.0):  # longer than a head may take
            client.sendall(REQUEST)
            time.sleep(pause_s)
            client.sendall(b"xy")
            assert b"200 OK" in answer(client)
        client.sendall((REQUEST + b"xy") * 3)
        got = b""
        while got.count(b"200 OK") < 3:
            got += client.recv(1000)
        large = b"x" * 300_000
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 300000\r\n\r\n" + large + REQUEST + b"xy")
        got = b""
        while got.count(b"200 OK") < 2:
            got += client.recv(1000)


def test_so_many_requests_may_wait_behind_another(port):
    """What does not fit into one piece is not read before some are answered, so they are sent at once."""
    before = len(ASKED)
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 14_000)
        assert is_ended(client)
    assert len(ASKED) - before <= 1 + connection.MAX_PIPELINED
    with connect(port) as client:
        client.sendall(b"GET /2 HTTP/1.1\r\n\r\n" * (1 + connection.MAX_PIPELINED))
        got = b""
        while got.count(b"200 OK") < 1 + connection.MAX_PIPELINED:
            got += client.recv(1000)


def test_who_does_not_read_is_left(web, port):
    with connect(port, receive_buffer=4096) as client:
        client.sendall(b"GET /50000000 HTTP/1.1\r\nhost: x\r\n\r\n")
        wait_until(lambda: "/50000000" in ASKED, "the request")
        wait_until(lambda: not web.server_state.connections, "its end")
        got = 0
        try:
            while piece := client.recv(1 << 20):
                got += len(piece)
        except ConnectionError:
            pass
        assert got < 50_000_000


def test_there_is_room_for_so_many(port, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 60.0)
    inside = [connect(port) for _ in range(3)]
    try:
        with connect(port) as late:
            assert is_ended(late)
        for client in inside:
            client.sendall(REQUEST + b"xy")
            assert b"200 OK" in answer(client)
    finally:
        for client in inside:
            client.close()
