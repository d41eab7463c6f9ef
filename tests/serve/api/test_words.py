"""Prompts on their way through a real server: rewritten, refused, or drawn as they are."""

from __future__ import annotations

import time

import pytest

from lens_serve.api.errors import to_api_error
from lens_serve.images.sign import SignError
from lens_serve.rewriters.template import load_template
from lens_serve.safety.gate import CheckFailed, Gate
from serve.api.wire import error_of, events_of
from serve.chat_server import ChatServer, completion
from serve.live import live_server, settings_for

URL = "/v1/images/generations"
DENSE = "A red circle on a plain white ground."


@pytest.fixture(scope="module")
def server(tiny_folder):
    """A server whose rewriter asks a chat server, and which does not draw guns."""
    with ChatServer().running() as chat:
        settings = settings_for(
            tiny_folder,
            rewrite={"rewriter": {"type": "openai", "model": "m", "base_url": chat.url}, "timeout_s": 30},
            safety=[{"type": "block-list", "words": ["gun"]}],
        )
        with live_server(settings) as live, live.http() as client:
            yield client, chat


@pytest.fixture
def client(server):
    client, chat = server
    chat.asked.clear()
    chat.says(completion(DENSE))
    return client


@pytest.fixture
def chat(server):
    return server[1]


def draw(client, prompt, **lens):
    answer = client.post(URL, json={"prompt": prompt, "lens": {"seed": 1, **lens}})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return answer.headers["x-lens-rewrite"], body["data"][0]["revised_prompt"], body["lens"]["images"][0]


def test_rewriting_is_no_waiting_for_an_engine(tiny_folder, monkeypatch):
    """Or the times of the stages overlap, and whose prompt took long goes before others."""
    rewritten, handed_over = [], []
    with live_server(settings_for(tiny_folder)) as live, live.http() as client:
        rewrite, drawing = live.server.rewriting.rewrite, live.server.engines.draw

        async def timed(*about, **wanted):
            made = await rewrite(*about, **wanted)
            rewritten.append(time.monotonic())
            return made

        def heard(draw):
            handed_over.append(draw.arrived)
            return drawing(draw)

        monkeypatch.setattr(live.server.rewriting, "rewrite", timed)
        monkeypatch.setattr(live.server.engines, "draw", heard)
        draw(client, "a circle")
    assert handed_over > rewritten


def test_what_was_rewritten_is_drawn_and_told(client, chat):
    outcome, drawn, receipt = draw(client, "a circle")
    assert (outcome, drawn) == ("rewritten", DENSE)
    assert receipt["prompt"] == "a circle"
    assert receipt["rewritten_prompt"] == DENSE
    assert receipt["rewrite"] == {"by": "openai", "outcome": "rewritten", "template": load_template("dense-1").id}
    assert draw(client, "a circle")[:2] == ("cached", DENSE)
    assert len(chat.asked) == 1
    assert draw(client, DENSE)[:2] == ("unchanged", DENSE)


def test_who_wants_no_rewriting_gets_none(client, chat):
    assert draw(client, "two circles", rewrite=False)[:2] == ("off", "two circles")
    assert chat.asked == []


def test_a_rewriter_that_fails_is_told_and_draws(client, chat):
    chat.says(b"", status=500)
    assert draw(client, "three circles")[:2] == ("fallback", "three circles")
    chat.says(completion(DENSE))
    assert draw(client, "three circles")[:2] == ("rewritten", DENSE)


def test_what_is_refused_is_neither_rewritten_nor_drawn(client, chat):
    error = error_of(client.post(URL, json={"prompt": "a GUN on a table"}), 403)
    assert error["code"] == "content_policy_violation"
    assert "gun" not in error["message"].lower()
    assert chat.asked == []


def test_what_is_steered_away_from_may_be_named(client, chat):
    _, _, receipt = draw(client, "a circle", negative_prompt="gun")
    assert receipt["negative"] == "gun"


def test_without_a_seed_equal_prompts_are_rewritten_once(client, chat):
    answers = [client.post(URL, json={"prompt": "five circles"}) for _ in range(2)]
    assert [answer.headers["x-lens-rewrite"] for answer in answers] == ["rewritten", "cached"]
    assert len({answer.json()["lens"]["seed"] for answer in answers}) == 2  # the images differ all the same
    assert draw(client, "five circles", seed=2)[0] == "rewritten"  # who throws the dice anew gets other words, too
    assert len(chat.asked) == 2


def test_what_a_rewriter_adds_is_refused_too(client, chat):
    chat.says(completion("A circle, and a gun."))
    error = error_of(client.post(URL, json={"prompt": "four circles"}), 403)
    assert error["code"] == "content_policy_violation"
    assert "rewritten prompt" in error["message"].lower()


@pytest.fixture(scope="module")
def strict(tiny_folder, tmp_path_factory):
    """A server that refuses every picture."""
    from core.vision_models import vit

    folder = vit(tmp_path_factory.mktemp("vit"))
    checker = {"type": "image-classifier", "model": str(folder), "device": "cpu", "max": 0.0}
    with live_server(settings_for(tiny_folder, safety=[checker])) as live, live.http() as client:
        yield client


def test_pictures_are_refused(strict):
    error = error_of(strict.post(URL, json={"prompt": "x"}), 403)
    assert error["code"] == "content_policy_violation"


def test_previews_are_refused_as_well(strict):
    body = {"prompt": "x", "stream": True, "partial_images": 2, "lens": {"steps": 8}}
    with strict.stream("POST", URL, json=body) as answer:
        told = [event["event"] for event in events_of(answer.iter_lines()) if "data" in event]
    assert told == ["error"]


def test_each_text_is_checked_once(tiny_folder, monkeypatch):
    asked = []

    async def check(_, text, where):
        asked.append((text, where))

    monkeypatch.setattr(Gate, "check_prompt", check)
    with ChatServer().running() as chat:
        chat.says(completion(DENSE))
        rewriter = {"type": "openai", "model": "m", "base_url": chat.url}
        settings = settings_for(tiny_folder, rewrite={"rewriter": rewriter, "timeout_s": 30})
        with live_server(settings) as live, live.http() as client:
            draw(client, "a circle", negative_prompt="blur")
            draw(client, "two circles", rewrite=False)
    assert asked == [
        ("a circle", "prompt"),
        (DENSE, "rewritten prompt"),
        ("two circles", "prompt"),
    ]


def test_what_cannot_be_signed_need_not_be_tried_again():
    told = to_api_error(SignError("the image cannot be signed: it has expired"))
    assert (told.status, told.code, told.headers) == (500, "signing_failed", {"x-should-retry": "false"})


def test_a_checker_that_breaks_is_no_fault_of_the_client():
    told = to_api_error(CheckFailed("it could not be checked", "image"))
    assert told.status == 500
    assert told.type == "server_error"
