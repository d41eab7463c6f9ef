"""`stream: true`: what goes over the wire, and what happens when it breaks."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time

import pytest
import uvicorn

from lens_serve.api import sending, sse
from serve.api.wire import error_of, events_of, pixels
from serve.live import ENDLESS, live_server, settings_for, wait_until
from serve.models import SIDE, STEPS

LONG = {"prompt": "x", "stream": True, **ENDLESS}


@pytest.fixture(scope="module")
def client(live):
    with live.http() as client:
        yield client


def stream(client, **body):
    with client.stream("POST", "/v1/images/generations", json={"prompt": "x", "stream": True, **body}) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-lens-rewrite"] == "off"
        assert answer.headers["x-request-id"]
        return list(events_of(answer.iter_lines()))


def test_events(client):
    events = stream(client, n=2, partial_images=2, quality="high", user="u")
    told = [event for event in events if "comment" not in event]
    assert [event["id"] for event in told] == [str(number) for number in range(len(told))]
    assert all(event["event"] == event["data"]["type"] for event in told)
    done = [event["data"] for event in told if event["event"] == "image_generation.completed"]
    assert sorted(one["lens"]["index"] for one in done) == [0, 1]
    assert all(one["size"] == f"{SIDE}x{SIDE}" and one["safety_identifier"] == "u" for one in done)
    assert all(pixels(one["b64_json"]).shape == (SIDE, SIDE, 3) for one in done)
    assert len({one["lens"]["receipt"]["pixel_sha256"] for one in done}) == 2
    steps = [event["comment"] for event in events if "comment" in event]
    assert f"image 0 step {2 * STEPS}/{2 * STEPS}" in steps
    assert f"image 1 step 1/{2 * STEPS}" in steps


def test_without_previews_there_is_one_event(client):
    told = [event for event in stream(client) if "comment" not in event]
    assert [event["event"] for event in told] == ["image_generation.completed"]


def test_a_stream_and_an_answer_show_the_same(client):
    lens = {"seed": 3, "tier": "exact"}
    (event,) = [event for event in stream(client, lens=lens) if "data" in event]
    answer = client.post("/v1/images/generations", json={"prompt": "x", "lens": lens}).json()
    assert event["data"]["b64_json"] == answer["data"][0]["b64_json"]


def test_what_is_refused_is_refused_before_the_stream(client):
    body = {"prompt": "x", "stream": True, "size": "1x1"}
    assert error_of(client.post("/v1/images/generations", json=body), 400)["param"] == "size"


def test_a_failure_after_the_headers_is_an_event(tiny_folder, tmp_path):
    import openai

    store = tmp_path / "store"
    with live_server(settings_for(tiny_folder, output={"store": str(store)})) as live:
        shutil.rmtree(store)
        store.write_text("in the way")
        with live.http() as client:
            last = stream(client)[-1]
        assert last["event"] == "error"
        assert last["data"]["error"]["code"] == "storage_failed"
        assert str(tmp_path) not in json.dumps(last)
        with live.openai(max_retries=0) as client, pytest.raises(openai.APIError, match="could not be stored"):
            list(client.images.generate(prompt="x", stream=True))
        live.server.encoders.close()
        with live.http() as client:
            assert stream(client)[-1]["data"]["error"]["code"] == "internal"
            error = error_of(client.post("/v1/images/generations", json={"prompt": "x"}), 500)
        assert error == {"message": "The server failed.", "type": "server_error", "param": None, "code": "internal"}


def test_heartbeats_do_not_disturb_openais_client(slow, monkeypatch):
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.001)
    with slow.http() as client:
        events = stream(client, size="64x64", partial_images=1, lens={"steps": 100})
        assert {"comment": "still here"} in events
    with slow.openai(max_retries=0) as client:
        options = {"partial_images": 2, "extra_body": {"lens": {"steps": 100}}}
        types = [event.type for event in client.images.generate(prompt="x", stream=True, **options)]
    assert types[-1] == "image_generation.completed"


def test_closing_the_stream_ends_the_drawing(slow):
    with slow.http() as client, client.stream("POST", "/v1/images/generations", json=LONG) as answer:
        events = events_of(answer.iter_lines())
        assert "step" in next(events)["comment"]
        assert slow.jobs == 1
    wait_until(lambda: slow.rests, "the end of the job")
    wait_until(lambda: not slow.server.streams[anonymous(slow)], "the end of the stream")


def test_a_key_has_only_so_many_streams(slow):
    with slow.http() as client:
        streams = [client.stream("POST", "/v1/images/generations", json=LONG) for _ in range(3)]
        try:
            assert [one.__enter__().status_code for one in streams] == [200] * 3
            error = error_of(client.post("/v1/images/generations", json=LONG), 429)
            assert error["code"] == "concurrency"
            assert client.post("/v1/images/generations", json={"prompt": "x"}).status_code == 200
        finally:
            for one in streams:
                one.__exit__(None, None, None)
    wait_until(lambda: slow.rests, "the end of the jobs")


def test_a_reader_who_does_not_read_is_dropped(slow, monkeypatch):
    monkeypatch.setattr(sending, "WRITE_S", 0.3)
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.0)  # fills what is between the two quickly
    before = slow.count("lens_cancels_total", stage="draw")
    body = json.dumps({**LONG, "n": 4, "partial_images": 3}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    with connection:
        connection.connect(("127.0.0.1", slow.port))
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{slow.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        wait_until(lambda: slow.count("lens_cancels_total", stage="draw") == before + 1, "the server to give up")
        wait_until(lambda: slow.rests, "the end of the jobs")
        received = b""
        connection.settimeout(60)
        while data := connection.recv(65536):
            received += data
    assert b"text/event-stream" in received
    assert received.count(b"image_generation.completed") < 4, "it was served, not dropped"


def test_a_slow_but_steady_reader_is_served(monkeypatch):
    """However large an event is: what counts is the time since the reader took anything, and that he takes enough.

    Where this machine is held up for so long, the reader is not steady: then all of it is tried again, more slowly.
    """
    for write_s in (1.0, 3.0, 9.0):
        monkeypatch.setattr(sending, "WRITE_S", write_s)
        began = time.monotonic()
        received = read_slowly(3 << 20, pause_s=write_s / 100)
        assert time.monotonic() - began > write_s
        if received.endswith(b"0\r\n\r\n"):
            break
    assert received.endswith(b"0\r\n\r\n"), "it was dropped"
    assert received.count(b"a") >= 3 << 20


def test_a_steady_reader_who_takes_too_little_is_dropped(monkeypatch):
    """Or he could have megabytes wait for him for hours."""
    monkeypatch.setattr(sending, "WRITE_S", 1.0)
    monkeypatch.setattr(sending, "SLOWEST", 100 << 20)
    assert not read_slowly(3 << 20, pause_s=0.02).endswith(b"0\r\n\r\n")


def read_slowly(size, *, pause_s):
    """What a reader has in the end who takes an event of so many bytes in small pieces."""

    async def source():
        yield sse.Frame(0, b"data: " + b"a" * size + b"\n\n")

    async def app(scope, receive, send):
        await sse.EventStream(source())(scope, receive, send)

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    web = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
            connection.settimeout(60)
            connection.connect(listener.getsockname())
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = b""
            while data := connection.recv(16384):
                received += data
                time.sleep(pause_s)
    finally:
        web.should_exit = True
        thread.join(60)
        listener.close()
    return received


def anonymous(live):
    from lens_serve.admission.keys import ANONYMOUS

    assert live.server.keyring is None
    return ANONYMOUS.id
