"""OpenAI's own client, unmodified, against a real server."""

from __future__ import annotations

import asyncio
import threading

import openai
import pytest

from serve.api.wire import pixels
from serve.live import ENDLESS, live_server, settings_for, wait_until
from serve.models import SIDE


@pytest.fixture(scope="module")
def client(live):
    with live.openai(max_retries=0) as client:
        yield client


def test_generate(client):
    answer = client.images.generate(prompt="a red fox", model="tiny", n=2, size="24x24", quality="low")
    assert [pixels(image.b64_json).shape for image in answer.data] == [(24, 24, 3)] * 2
    assert answer.size == "24x24"
    assert answer.usage.output_tokens == 72
    assert answer.usage.output_tokens_details.image_tokens == 72
    assert answer._request_id


def test_our_own_parameters(client):
    def seed_7():
        return client.images.generate(
            prompt="a red fox", extra_body={"lens": {"seed": 7, "steps": 1, "guidance": 1, "tier": "exact"}}
        )

    first, second = seed_7(), seed_7()
    assert first.data[0].b64_json == second.data[0].b64_json
    assert first.lens["seed"] == 7
    assert first.lens["images"][0]["guidance"] == 1


def test_asyncio(live):
    async def draw():
        async with live.openai_async(max_retries=0) as client:
            answers = await asyncio.gather(*(client.images.generate(prompt=f"fox {i}") for i in range(4)))
            stream = await client.images.generate(prompt="a red fox", stream=True, partial_images=1)
            return answers, [event async for event in stream]

    answers, events = asyncio.run(draw())
    assert all(pixels(answer.data[0].b64_json).shape == (SIDE, SIDE, 3) for answer in answers)
    assert events[-1].type == "image_generation.completed"


def test_stream(client):
    with client.images.generate(prompt="a red fox", stream=True, partial_images=2, quality="high") as stream:
        events = list(stream)
    assert [event.type for event in events[:-1]] == ["image_generation.partial_image"] * (len(events) - 1)
    assert events[-1].type == "image_generation.completed"
    assert isinstance(events[-1], openai.types.ImageGenCompletedEvent)
    assert pixels(events[-1].b64_json).shape == (SIDE, SIDE, 3)
    assert events[-1].usage.output_tokens == 16
    partial = events[0]
    assert isinstance(partial, openai.types.ImageGenPartialImageEvent)
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(events) - 1))
    assert pixels(partial.b64_json).ndim == 3


def test_raw_and_streaming_response(client):
    raw = client.images.with_raw_response.generate(prompt="a red fox")
    assert raw.headers["x-lens-rewrite"] == "off"
    assert raw.parse().data[0].b64_json
    with client.images.with_streaming_response.generate(prompt="a red fox") as response:
        assert response.headers["x-request-id"]
        assert response.json()["data"]


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "lens")
    assert model.lens["size"] == f"{SIDE}x{SIDE}"
    assert model.lens["bounds"]["max_side"] == 64
    assert client.models.retrieve("tiny") == model


def test_errors_are_their_classes(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="x", size="17x17")
    assert (caught.value.param, caught.value.type) == ("size", "invalid_request_error")
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="x", model="dall-e-3")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-3")
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(model="tiny", input="x")
    assert caught.value.status_code == 404


def test_timeouts(slow):
    def gone():
        return slow.count("lens_requests_total", route="/v1/images/generations", status="499")

    before = gone()
    with slow.openai(max_retries=0) as client:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1.0).images.generate(
                prompt="x", size=ENDLESS["size"], extra_body={"lens": ENDLESS["lens"]}
            )
        wait_until(lambda: gone() > before, "the server to notice")
        wait_until(lambda: slow.server.admission.inside == 0, "the end of the request")


@pytest.fixture(scope="module")
def busy(tiny_folder):
    """A server on which next to nothing may wait; who was promised a place has a minute to take it."""
    settings = settings_for(
        tiny_folder,
        bounds={"max_side": 64, "max_steps": 1000},
        admission={"max_backlog_s": 0.01, "max_wait_factor": 1000.0, "ticket_s": 60.0},
    )
    with live_server(settings) as live:
        yield live


@pytest.fixture
def load(busy):
    """Somebody else's long pictures, one after the other: each is let in as soon as nothing waits, as everybody is."""
    steps = busy.steps_for(1.0, side=64)

    def occupy():
        with busy.openai(max_retries=1000) as client:
            while not enough.is_set():
                client.images.generate(prompt="load", size="64x64", extra_body={"lens": {"steps": steps}})

    enough = threading.Event()
    thread = threading.Thread(target=occupy)
    thread.start()
    wait_until(lambda: busy.jobs, "the load")
    yield
    enough.set()
    thread.join()


SHORT = {"prompt": "x", "size": "16x16", "extra_body": {"lens": {"steps": 2}}}
"""Finds no room while the load has more left to do than this takes itself."""


def test_a_busy_server_says_when_to_come_again(busy, load):
    with busy.openai(max_retries=0) as client:

        def refusal():
            try:
                client.images.generate(**SHORT)
            except openai.RateLimitError as error:
                return error

        error = wait_until(refusal, "a refusal")
    assert (error.code, error.type, error.status_code) == ("queue_full", "rate_limit_error", 429)
    headers = error.response.headers
    assert int(headers["retry-after"]) * 1000 >= int(headers["retry-after-ms"]) > 0
    assert headers["x-should-retry"] in ("true", "false")


def test_a_client_that_comes_again_when_told_is_served(busy, load):
    with busy.openai(max_retries=5) as client:

        def refused_at_first():
            answer = client.images.with_raw_response.generate(**SHORT)
            assert answer.parse().data[0].b64_json
            return answer.retries_taken

        wait_until(refused_at_first, "a refusal")
