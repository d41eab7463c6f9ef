"""OpenAI's own client, unmodified, against a real server."""

from __future__ import annotations

import asyncio
import threading

import openai
import pytest

from serve.api.wire import pixels
from serve.live import live_server, settings_for, wait_until
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
    with slow.openai(max_retries=0) as client:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.2).images.generate(
                prompt="x", n=4, size="64x64", extra_body={"lens": {"steps": 1000}}
            )
        wait_until(lambda: slow.server.admission.inside == 0, "the server to notice")


@pytest.fixture(scope="module")
def busy(tiny_folder):
    """A server on which long requests may wait for a second only."""
    settings = settings_for(
        tiny_folder,
        bounds={"max_side": 64, "max_steps": 1000},
        admission={"max_backlog_s": 0.2, "max_wait_factor": 1000.0},
    )
    with live_server(settings) as live:
        yield live


@pytest.fixture
def load(busy):
    """As much work as is let in; the rest of the block finds the server busy."""

    def occupy():
        with busy.openai(max_retries=1000) as client:
            while not enough.is_set():
                client.images.generate(prompt="load", size="32x32", extra_body={"lens": {"steps": 50}})

    enough = threading.Event()
    threads = [threading.Thread(target=occupy) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: busy.server.engines.backlog_s() > 0.05, "a backlog")
    yield
    enough.set()
    for thread in threads:
        thread.join()


LONG = {"prompt": "x", "size": "32x32", "extra_body": {"lens": {"steps": 40}}}


def test_a_busy_server_says_when_to_come_again(busy, load):
    with busy.openai(max_retries=0) as client:

        def refusal():
            try:
                client.images.generate(**LONG)
            except openai.RateLimitError as error:
                return error

        error = wait_until(refusal, "a refusal")
    assert (error.code, error.type, error.status_code) == ("queue_full", "rate_limit_error", 429)
    headers = error.response.headers
    assert int(headers["retry-after"]) * 1000 >= int(headers["retry-after-ms"]) > 0
    assert headers["x-should-retry"] in ("true", "false")


def test_a_client_that_comes_again_when_told_is_served(busy, load):
    with busy.openai(max_retries=5) as client:
        for _ in range(3):
            assert client.images.generate(**LONG).data[0].b64_json
