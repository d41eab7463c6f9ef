"""`POST /v1/images/generations`, answered at once."""

from __future__ import annotations

import base64
import hashlib
import json
import socket

import numpy as np
import pytest

from lens_core.registry import load_registry
from serve.api.wire import error_of, pixels
from serve.live import ENDLESS, live_server, settings_for, wait_until
from serve.models import SIDE, STEPS, STRIDE


def generate(client, **body):
    return client.post("/v1/images/generations", json={"prompt": "a red fox", **body})


@pytest.fixture(scope="module")
def client(live):
    with live.http() as client:
        yield client


@pytest.fixture(scope="module")
def model(tiny_folder):
    """The model itself, without any server."""
    from lens_core.diffusion.model_folder import load_model_folder

    return load_model_folder(str(tiny_folder), registry=load_registry())


@pytest.fixture(scope="module")
def reference(model):
    """Pixels by the library itself: `reference(seed, index, **options)`."""
    from lens_core.diffusion.requests import Request
    from lens_core.diffusion.text_to_image import generate

    registry = load_registry()

    def draw(*, seed, index=0, size=(SIDE, SIDE), steps=STEPS, guidance=None, negative=""):
        height, width = size
        request = Request(prompt="a red fox", height=height, width=width, seed=seed, index=index, negative=negative)
        sampler = registry.parse("samplers", {**model.sampler.model_dump(), "steps": steps})
        (image_HW3,) = generate(model, [request], sampler=sampler, guidance=guidance)
        return image_HW3

    return draw


def test_the_least_that_can_be_asked_for(client):
    answer = generate(client)
    assert answer.status_code == 200
    assert answer.headers["x-lens-rewrite"] == "off"
    body = answer.json()
    (image,) = body["data"]
    assert pixels(image["b64_json"]).shape == (SIDE, SIDE, 3)
    assert image["revised_prompt"] == "a red fox"
    assert body["size"] == f"{SIDE}x{SIDE}"
    assert (body["output_format"], body["quality"], body["background"]) == ("png", "medium", "opaque")
    assert body["usage"]["output_tokens"] == (SIDE // STRIDE) ** 2
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]
    (receipt,) = body["lens"]["images"]
    assert receipt["seed"] == body["lens"]["seed"]
    assert receipt["sampler"]["steps"] == STEPS


def test_images_are_what_the_library_draws(client, reference):
    lens = {"seed": 5, "steps": 2, "guidance": 2.5, "negative_prompt": "blur", "tier": "exact"}
    body = generate(client, n=3, size="24x32", lens=lens).json()
    assert body["lens"]["seed"] == 5
    for index, image in enumerate(body["data"]):
        drawn = reference(seed=5, index=index, size=(32, 24), steps=2, guidance=2.5, negative="blur")
        shown = pixels(image["b64_json"])
        assert shown.shape == (32, 24, 3)
        assert np.abs(shown.astype(int) - drawn.astype(int)).max() <= 1
        receipt = body["lens"]["images"][index]
        assert (receipt["seed"], receipt["index"]) == (5, index)
        assert receipt["pixel_sha256"] == hashlib.sha256(shown.tobytes()).hexdigest()


def test_a_seed_that_was_drawn_gives_the_same_image_again(client):
    first = generate(client, lens={"tier": "exact"}).json()
    again = generate(client, lens={"seed": first["lens"]["seed"], "tier": "exact"}).json()
    other = generate(client, lens={"tier": "exact"}).json()
    assert pixels(first["data"][0]["b64_json"]).tobytes() == pixels(again["data"][0]["b64_json"]).tobytes()
    assert other["lens"]["seed"] != first["lens"]["seed"]


def test_usage_counts_what_the_model_sees(client, model):
    with model.stage("text_encoder") as encoder:
        (ids,) = encoder.tokenize(["a red fox"])
    usage = generate(client, n=2).json()["usage"]
    assert usage["input_tokens_details"] == {"text_tokens": 2 * len(ids), "image_tokens": 0}
    assert usage["output_tokens"] == 2 * (SIDE // STRIDE) ** 2


@pytest.mark.parametrize(
    ("quality", "steps"), [("low", STEPS // 2), ("medium", STEPS), ("auto", STEPS), ("high", 2 * STEPS)]
)
def test_quality_is_steps(client, quality, steps):
    body = generate(client, quality=quality).json()
    assert body["quality"] == ("medium" if quality == "auto" else quality)
    assert body["lens"]["images"][0]["sampler"]["steps"] == steps


def test_steps_count_for_more_than_quality_and_high_stays_within_bounds(client, tiny_folder):
    assert generate(client, quality="low", lens={"steps": 8}).json()["lens"]["images"][0]["sampler"]["steps"] == 8


@pytest.mark.parametrize(("format", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_formats(client, format, magic):
    body = generate(client, output_format=format).json()
    assert base64.b64decode(body["data"][0]["b64_json"]).startswith(magic)
    assert body["output_format"] == format


def test_compression_makes_files_smaller_and_is_refused_for_png(client):
    def length(**options):
        body = generate(client, size="64x64", output_format="jpeg", lens={"seed": 1}, **options).json()
        return len(body["data"][0]["b64_json"])

    assert length(output_compression=10) < length(output_compression=90) < length()
    assert error_of(generate(client, output_compression=10), 400)["param"] == "output_compression"


def test_users_come_back(client):
    assert generate(client, user="u1").json()["safety_identifier"] == "u1"
    assert generate(client, user="u1", safety_identifier="s1").json()["safety_identifier"] == "s1"
    assert "safety_identifier" not in generate(client).json()


def test_nulls_are_as_good_as_nothing(client):
    nothing = dict.fromkeys(["model", "n", "size", "quality", "output_format", "stream", "user", "lens", "background"])
    assert generate(client, **nothing).status_code == 200


def test_request_ids_are_the_clients_if_they_are_harmless(client):
    def sent(name):
        answer = client.post("/v1/images/generations", json={"prompt": "x"}, headers={"x-request-id": name})
        return answer.headers["x-request-id"]

    assert sent("mine-1.2_3") == "mine-1.2_3"
    for bad in ("a b", "x" * 65, "<script>", ""):
        assert sent(bad) != bad


def test_a_deadline_that_cannot_be_met_is_refused_at_once(slow):
    with slow.http() as client:
        lens = {"steps": 1000, "deadline_ms": 1}
        assert error_of(generate(client, size="64x64", n=4, lens=lens), 504)["code"] == "deadline"


def test_stored_images_have_urls(tiny_folder, tmp_path):
    output = {"store": str(tmp_path / "store"), "public_url": "https://images.example/lens"}
    with live_server(settings_for(tiny_folder, output=output)) as live, live.http() as client:
        body = generate(client, response_format="url").json()
        (image,) = body["data"]
        assert set(image) == {"url", "revised_prompt"}
        prefix = "https://images.example/lens/"
        assert image["url"].startswith(prefix)
        stored = (tmp_path / "store" / image["url"].removeprefix(prefix)).read_bytes()
        assert stored.startswith(b"\x89PNG")
        assert set(generate(client).json()["data"][0]) == {"b64_json", "revised_prompt"}


def test_urls_need_a_store(client):
    error = error_of(generate(client, response_format="url"), 400)
    assert (error["code"], error["param"]) == ("invalid_value", "response_format")


def test_who_leaves_is_not_drawn_for(slow):
    def told():
        ended = slow.count("lens_requests_total", route="/v1/images/generations", status="499")
        return ended, slow.count("lens_cancels_total", stage="draw"), slow.count("lens_images_total", model="tiny")

    ended, cancelled, drawn = told()
    body = json.dumps({"prompt": "x", **ENDLESS}).encode()
    with socket.create_connection(("127.0.0.1", slow.port)) as connection:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{slow.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        before = slow.ticks
        wait_until(lambda: slow.running, "the first step")
    wait_until(lambda: slow.rests, "the server to notice")
    wait_until(lambda: slow.running == 0, "the engine to notice")
    assert slow.ticks - before < 900, "it was drawn to its end"
    wait_until(lambda: told()[0] == ended + 1, "the request's end")
    assert told() == (ended + 1, cancelled + 1, drawn)
