"""The OpenAI-style captioner against a real server on a socket: every fault has its outcome."""

from __future__ import annotations

import asyncio
import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from lens_caption.captioners.openai.captioner import OpenAICaptioner
from lens_caption.captioners.openai.config import OpenAIConfig
from lens_caption.captioners.openai.outcomes import outcome_of
from lens_caption.captioners.openai.picture import sent_jpeg
from lens_caption.engine.policy import retry_after
from lens_caption.prompts import load_recipe
from lens_caption.testing.openai_server import Limits, OpenAIServer, caption_of
from lens_core.contracts import ImageItem
from lens_core.errors import LensError
from lens_core.images import decode


def item(colour, size=(96, 64)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return ImageItem(key=hashlib.sha256(stream.getvalue()).hexdigest(), data=stream.getvalue())


IMAGES = [item((value, 255 - value, value // 2)) for value in (0, 60, 120, 180, 240)]


@pytest.fixture(params=["chat", "responses"])
def api(request):
    return request.param


@pytest.fixture
def captioner(api):
    made = []

    def make(server, **options):
        options = {"max_wait_s": 1.0, **options}
        made.append(OpenAICaptioner(OpenAIConfig(model="m", base_url=server.url, api=api, **options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def expected(image, max_side=768, quality=85):
    return caption_of(decode(sent_jpeg(image.data, max_side=max_side, quality=quality)))


def test_each_image_gets_its_own_caption_in_order(captioner):
    with OpenAIServer() as server:
        outcomes = captioner(server).caption(IMAGES)
    assert [outcome.text for outcome in outcomes] == [expected(image) for image in IMAGES]
    assert len({outcome.text for outcome in outcomes}) == len(IMAGES)


def test_provenance_is_what_the_response_says(captioner, api):
    with OpenAIServer() as server:
        (outcome,) = captioner(server).caption(IMAGES[:1])
        (entry,) = server.ledger
    facts = outcome.provenance
    assert facts["served_model"] == "m-2026-01-01"
    assert facts["asked_model"] == "m"
    assert facts["service_tier"] == "default"
    assert facts["response_id"]
    assert (facts["input_tokens"], facts["output_tokens"]) == (entry.input_tokens, entry.output_tokens)
    assert facts["attempts"] == 1
    assert facts["api"] == api
    assert len(facts["prompt_sha256"]) == 16


def test_images_are_scaled_before_they_are_sent(captioner):
    with OpenAIServer() as server:
        (outcome,) = captioner(server, max_side=48).caption([IMAGES[1]])
    assert "48 by 32 pixels" in outcome.text


@pytest.mark.parametrize("fault", ["429", "429-retry-after-ms", "500", "drop", "html", "truncated-json"])
def test_passing_faults_are_tried_again(captioner, fault):
    with OpenAIServer(faults=[fault]) as server:
        (outcome,) = captioner(server).caption(IMAGES[:1])
        assert server.requests == 2
        assert len(server.ledger) == 1
    assert outcome.status == "ok", outcome.detail
    assert outcome.provenance["attempts"] == 2


def test_retry_after_is_obeyed(captioner):
    import time

    with OpenAIServer(faults=["429-retry-after"]) as server:
        started = time.monotonic()
        (outcome,) = captioner(server, max_wait_s=5).caption(IMAGES[:1])
    assert outcome.status == "ok"
    assert time.monotonic() - started >= 1.0


def test_to_come_back_at_once_is_no_reason_to_hammer(captioner):
    """A refused request counts, too: without pauses, none would ever be let in."""
    with OpenAIServer(limits=Limits(rpm=600, window_s=0.1, retry_after="wrong")) as server:
        outcomes = captioner(server, concurrency=1).caption(IMAGES[:2])
    assert [outcome.status for outcome in outcomes] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_retry_after_header(headers, seconds):
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("fault", ["500", "drop", "429-retry-after-ms", "html"])
def test_lasting_faults_of_transport_become_an_outcome(captioner, fault):
    with OpenAIServer(faults=[fault] * 20) as server:
        (outcome,) = captioner(server, max_attempts=3, max_wait_s=0.05).caption(IMAGES[:1])
        assert server.requests == 3
    assert outcome.status == "transport"
    assert outcome.detail
    assert outcome.text == ""


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("refusal", "refusal"),
        ("refusal-prose", "refusal"),
        ("content-filter", "content-filter"),
        ("length", "truncated"),
        ("empty", "empty"),
        ("400", "bad-image"),
    ],
)
def test_final_outcomes_are_not_tried_again(captioner, fault, status):
    with OpenAIServer(faults=["ok", fault, "ok"]) as server:
        outcomes = captioner(server, concurrency=1).caption(IMAGES[:3])
        assert server.requests == 3
    assert [outcome.status for outcome in outcomes] == ["ok", status, "ok"]
    assert outcomes[1].text == ""
    assert outcomes[1].detail


PARTS = [{"type": "text", "text": "A cat "}, {"type": "thinking", "thinking": []}, {"type": "text", "text": "asleep."}]


@pytest.mark.parametrize(("content", "status", "text"), [(PARTS, "ok", "A cat asleep."), ([], "empty", "")])
def test_a_text_in_parts_and_an_answer_that_names_no_model(content, status, text):
    answer = {
        "choices": [{"finish_reason": "stop", "message": {"content": content}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
    outcome, usage = outcome_of("k", answer, {}, load_recipe("dense-1"))
    assert (outcome.status, outcome.text) == (status, text)
    assert (usage.input_tokens, usage.output_tokens) == (7, 3)


def test_slow_server_times_out_and_is_tried_again(captioner):
    with OpenAIServer(faults=["slow"], slow_s=6.0) as server:
        (outcome,) = captioner(server, timeout_s=2).caption(IMAGES[:1])
    assert outcome.status == "ok"
    assert outcome.provenance["attempts"] == 2


def test_bad_image_never_reaches_the_server(captioner):
    bad = ImageItem(key="0" * 64, data=b"not an image")
    with OpenAIServer() as server:
        outcomes = captioner(server).caption([IMAGES[0], bad, IMAGES[1]])
        assert server.requests == 2
    assert [outcome.status for outcome in outcomes] == ["ok", "bad-image", "ok"]
    assert outcomes[1].detail == "it is not an image"


@pytest.mark.parametrize(
    ("options", "words"), [({"faults": ["quota"] * 9}, "quota"), ({"api_key": "right"}, "API key")]
)
def test_what_refuses_everything_stops_the_run(captioner, options, words, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-secret")
    with OpenAIServer(**options) as server:
        with pytest.raises(LensError, match=words) as caught:
            captioner(server).caption(IMAGES[:1])
        assert server.requests <= 1
    assert "wrong-secret" not in str(caught.value)


def test_unknown_model_stops_the_run(api):
    with OpenAIServer() as server:
        captioner = OpenAICaptioner(OpenAIConfig(model="no-such-model", base_url=server.url, api=api))
        with pytest.raises(LensError, match="refuses the model 'no-such-model': HTTP 404"):
            captioner.caption(IMAGES[:1])
        captioner.close()


def test_key_comes_from_the_named_variable(captioner, monkeypatch):
    monkeypatch.setenv("MY_KEY", "right")
    with OpenAIServer(api_key="right") as server:
        (outcome,) = captioner(server, api_key_env="MY_KEY").caption(IMAGES[:1])
    assert outcome.status == "ok"


def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LensError, match="export OPENAI_API_KEY="):
        OpenAICaptioner(OpenAIConfig(model="gpt-4.1"))


def test_nobody_listening_is_transport(captioner):
    with OpenAIServer() as server:
        made = captioner(server, max_attempts=2, max_wait_s=0.05)
    (outcome,) = made.caption(IMAGES[:1])
    assert outcome.status == "transport"


def test_it_can_be_asked_where_an_event_loop_runs(captioner):
    """As in a notebook, between calls from plain code; the connections are the same."""
    with OpenAIServer() as server:
        made = captioner(server)
        plain = made.caption(IMAGES)

        async def cell():
            return made.caption(IMAGES)

        told = [outcome.text for outcome in asyncio.run(cell())]
        assert told == [outcome.text for outcome in made.caption(IMAGES)] == [outcome.text for outcome in plain]
        assert len(server.ledger) == 3 * len(IMAGES)

        async def last_cell():
            made.close()
            made.close()

        asyncio.run(last_cell())
        with pytest.raises(LensError, match="closed"):
            made.caption(IMAGES)


def test_auto_api():
    assert OpenAIConfig(model="m").speaks == "responses"
    assert OpenAIConfig(model="m", base_url="http://localhost:8000/v1/").speaks == "chat"


def test_credentials_in_the_endpoint_are_refused():
    with pytest.raises(ValueError, match="must not carry credentials"):
        OpenAIConfig(model="m", base_url="http://me:secret@host/v1")


def test_prompt_says_what_the_paper_asks_for():
    from lens_caption.prompts import load_prompt

    text = load_prompt("dense-1").lower()
    for word in (
        "500 words",
        "colour",
        "count",
        "background",
        "its own language",
        "do not mention",
        "well-known",
        "draw",
    ):
        assert word in text
    assert np.array_equal(decode(IMAGES[0].data)[0, 0], [0, 255, 0])
