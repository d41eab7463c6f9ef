"""What nobody should send, and everybody does: one clear line each, never a 5xx."""

from __future__ import annotations

import json
import socket
import struct
import zlib

import numpy as np
import pytest

from lens_serve.api import outermost
from serve.api.wire import error_of, file_of

HUGE = "9" * 5000


@pytest.fixture(scope="module")
def client(live):
    with live.http() as client:
        yield client


def post(client, body, **headers):
    content = body if isinstance(body, (bytes, str)) else json.dumps(body)
    return client.post(
        "/v1/images/generations", content=content, headers={"content-type": "application/json", **headers}
    )


@pytest.mark.parametrize(
    "size",
    [
        "0x0", "1x1", "100000x10000", "99999x99999", "16", "16x", "x16", "1024x", "-16x16", "16x-16",
        "16X16", "16 x 16", "16x16x16", "17x16", "16x18", "12x16", "128x16", "16x128", "+16x16", "016x16", "1e2x16",
        "16x16\n",
        "１６x16", "", "AUTO", "NaNxNaN", HUGE,
    ],
)  # fmt: skip
def test_sizes(client, size):
    error = error_of(post(client, {"prompt": "x", "size": size}), 400)
    assert error["param"] == "size"
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 4001}, "prompt"),
        ({"prompt": "x" * 40_000}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"n": 11}, "n"),
        ({"n": "1"}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"size": 16}, "size"),
        ({"quality": "hd"}, "quality"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression"),
        ({"background": "transparent"}, "background"),
        ({"moderation": "low"}, "moderation"),
        ({"stream": 0}, "stream"),
        ({"stream": "true"}, "stream"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"partial_images": False}, "partial_images"),
        ({"user": "x" * 513}, "user"),
        ({"model": 1}, "model"),
        ({"lens": []}, "lens"),
        ({"lens": "{}"}, "lens"),
        ({"lens": {"seed": -1}}, "lens.seed"),
        ({"lens": {"seed": 2**63}}, "lens.seed"),
        ({"lens": {"seed": 2**200}}, "lens.seed"),
        ({"lens": {"steps": 0}}, "lens.steps"),
        ({"lens": {"steps": 9}}, "lens.steps"),
        ({"lens": {"steps": 2**40}}, "lens.steps"),
        ({"lens": {"guidance": 0.5}}, "lens.guidance"),
        ({"lens": {"guidance": 21}}, "lens.guidance"),
        ({"lens": {"guidance": float("nan")}}, "lens.guidance"),
        ({"lens": {"guidance": float("inf")}}, "lens.guidance"),
        ({"lens": {"guidance": True}}, "lens.guidance"),
        ({"lens": {"lora_scale": float("-inf")}}, "lens.lora_scale"),
        ({"lens": {"negative_prompt": "x" * 4001}}, "lens.negative_prompt"),
        ({"lens": {"tier": "EXACT"}}, "lens.tier"),
        ({"lens": {"deadline_ms": 0}}, "lens.deadline_ms"),
        ({"lens": {"rewrite": "yes"}}, "lens.rewrite"),
    ],
)
def test_values(client, changes, param):
    error = error_of(post(client, {"prompt": "x", **changes}), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("body", "param", "hint"),
    [
        ({"promt": "x"}, "promt", "'prompt'"),
        ({"prompt": "x", "seed": 1}, "seed", "'lens.seed'"),
        ({"prompt": "x", "lens": {"negative": "y"}}, "lens.negative", "'negative_prompt'"),
        ({"prompt": "x", "svg": {}}, "svg", "Known: "),
        ({"prompt": "x", "\ud800": 1}, "\ufffd" * 3, "Known: "),
        ({"prompt": "x", "k" * 100_000: 1}, "k" * 64, "Known: "),
        ({"prompt": "x", **{f"k{i}": 1 for i in range(20_000)}}, "k0", "Known: "),
    ],
)
def test_unknown_names_come_with_a_suggestion(client, body, param, hint):
    error = error_of(post(client, body), 400)
    assert error["param"] == param
    assert hint in error["message"]
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"1", b"NaN", b'{"prompt": "x"', b"{'prompt': 'x'}", b"\xff\xfe{}", b"\x00",
        b'{"prompt": "\xff"}', b"[" * 100_000, b'{"prompt":' * 50_000, b'{"lens":' * 900 + b"1" + b"}" * 900,
        b'{"prompt": "x", "n": ' + b"9" * 10_000 + b"}", b'{"prompt": "x", "lens": {"guidance": 1e999}}',
        b'{"prompt": "\\ud800"}', b'{"prompt": "x", "lens": {"negative_prompt": "\\udfff"}}',
    ],
)  # fmt: skip
def test_bodies(client, body):
    error = error_of(post(client, body), 400)
    assert error["type"] == "invalid_request_error"


def test_the_last_of_equal_keys_counts_as_in_python(client):
    body = post(client, '{"prompt": "x", "n": 3, "n": 2, "lens": {"steps": 1}}').json()
    assert len(body["data"]) == 2


@pytest.mark.parametrize("prompt", ["\x00", "a\x00b", "\u202e", "🦊" * 4000, " ", "\n", "<|end|>", "'; --", "%s{}"])
def test_odd_prompts_are_prompts(client, prompt):
    body = post(client, {"prompt": prompt, "lens": {"steps": 1}}).json()
    assert body["lens"]["images"][0]["prompt"] == prompt


def test_unknown_models_and_loras(client):
    error = error_of(post(client, {"prompt": "x", "model": "tinny"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "Did you mean 'tiny'?" in error["message"]
    error = error_of(post(client, {"prompt": "x", "lens": {"lora": "fox"}}), 404)
    assert (error["code"], error["param"]) == ("lora_not_found", "lens.lora")
    assert error_of(client.get("/v1/models/nothing"), 404)["code"] == "model_not_found"
    assert error_of(client.get("/v1/models/" + "m" * 65), 400)["param"] == "model"


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "file:///x", "a\\b", "fox\n", "", "x" * 65])
def test_names_are_no_paths(client, name):
    for body, param in (({"model": name}, "model"), ({"lens": {"lora": name}}, "lens.lora")):
        error = error_of(post(client, {"prompt": "x", **body}), 400)
        assert (error["code"], error["param"]) == ("invalid_value", param)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_json_has_to_be_called_json(client, kind):
    error = error_of(post(client, {"prompt": "x"}, **{"content-type": kind}), 400)
    assert error["code"] == "invalid_value"
    assert "application/json" in error["message"]


def test_pages_of_others_may_not_ask(client):
    error = error_of(post(client, {"prompt": "x"}, origin="https://evil.example"), 403)
    assert error["code"] == "cross_origin"
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = client.options("/v1/images/generations", headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    error_of(answer, 405)


def test_unknown_paths_and_methods(client):
    assert error_of(client.get("/v1/images/nothing"), 404)["code"] == "not_found"
    assert error_of(client.post("/v1/chat/completions", json={}), 404)["code"] == "not_found"
    answer = client.get("/v1/images/generations")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


def test_large_bodies_are_refused_unread(client, live):
    error = error_of(post(client, b" " * (1 << 20) + b"{}"), 413)
    assert error["code"] == "body_too_large"
    with socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


def test_large_bodies_of_no_declared_length_are_refused_on_the_way(client):
    def pieces():
        for _ in range(40):
            yield b" " * 65_536

    answer = client.post("/v1/images/generations", content=pieces(), headers={"content-type": "application/json"})
    assert error_of(answer, 413)["code"] == "body_too_large"


def test_bodies_that_do_not_come(live, monkeypatch):
    monkeypatch.setattr(outermost, "BODY_S", 0.2)
    with socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{live.port}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        answer = b""
        while not answer.endswith(b"}}"):
            answer += connection.recv(4096) or pytest.fail(f"it ended with {answer!r}")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"


@pytest.mark.parametrize("ticket", ["x", "x" * 1024, "AAAA.BBBB", "é".encode("latin-1")])
def test_a_ticket_that_is_none_changes_nothing(client, ticket):
    assert post(client, {"prompt": "x", "lens": {"steps": 1}}, **{"x-lens-ticket": ticket}).status_code == 200


def test_a_ticket_that_is_too_long(client):
    error_of(post(client, {"prompt": "x"}, **{"x-lens-ticket": "x" * 1025}), 400)


def bomb():
    """A PNG of a few bytes that claims to be 60,000 by 60,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\x00" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


IMAGE = file_of(np.zeros((16, 16, 3), np.uint8))
NOISE = file_of(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
GIF = file_of(np.zeros((16, 16, 3), np.uint8), "GIF")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16"/>'


UPLOADS = {
    "nothing": b"",
    "text": b"x",
    "gif": GIF,
    "svg": SVG,
    "half": NOISE[: len(NOISE) // 2],
    "bomb": bomb(),
    "rubbish": b"\x89PNG\r\n\x1a\n" + b"x" * 100,
}


@pytest.mark.parametrize("upload", UPLOADS.values(), ids=UPLOADS.keys())
def test_uploads(client, upload):
    data = {"prompt": "x", "lens": json.dumps({"mode": "img2img"})}
    error = error_of(client.post("/v1/images/edits", data=data, files={"image": ("i.png", upload)}), 400)
    assert error["code"] == "invalid_image"


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x", "n": "many"}, "n"),
        ({"prompt": "x", "n": "0"}, "n"),
        ({"prompt": "x", "stream": "perhaps"}, "stream"),
        ({"prompt": "x", "lens": "not json"}, "lens"),
        ({"prompt": "x", "lens": "[]"}, "lens"),
        ({"prompt": "x", "lens": '{"mode": "magic"}'}, "lens.mode"),
        ({"prompt": "x", "lens": '{"mode": "img2img", "strength": 0}'}, "lens.strength"),
        ({"prompt": "x", "lens": '{"mode": "img2img", "strength": NaN}'}, "lens.strength"),
        ({"prompt": "x", "lens[mode]": "img2img"}, "lens[mode]"),
        ({"prompt": "x", "promt": "x"}, "promt"),
    ],
)
def test_forms(client, data, param):
    error = error_of(client.post("/v1/images/edits", data=data, files={"image": ("i.png", IMAGE)}), 400)
    assert error["param"] == param


def test_forms_without_an_image(client):
    error = error_of(client.post("/v1/images/edits", data={"prompt": "x"}), 400)
    assert error["param"] == "image"
    files = {"image": (None, "not a file")}
    assert error_of(client.post("/v1/images/edits", data={"prompt": "x"}, files=files), 400)["param"] == "image"
    error_of(client.post("/v1/images/edits", json={"prompt": "x"}), 400)
    headers = {"content-type": "multipart/form-data; boundary=b"}
    error_of(client.post("/v1/images/edits", content=b"--b\r\nbroken", headers=headers), 400)
    error_of(client.post("/v1/images/edits", content=b"x", headers={"content-type": "multipart/form-data"}), 400)
