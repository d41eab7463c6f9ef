"""The evaluator with dense prompts: questions are answered over a real socket, children only if parents are true."""

from __future__ import annotations

import base64
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from lens_caption.testing.openai_server import FakeServer
from lens_core.contracts import verdicts
from lens_core.errors import LensError
from lens_train.evaluation.dpg.config import DpgEvaluatorConfig
from lens_train.evaluation.dpg.endpoint import yes_or_no
from lens_train.evaluation.dpg.evaluator import DpgEvaluator
from serve.chat_server import ChatServer, completion
from train.evaluation.test_dpg_prompts import ROWS, write

RED, BLUE = np.full((8, 12, 3), (200, 10, 10), np.uint8), np.full((8, 12, 3), (10, 10, 200), np.uint8)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def make(tmp_path):
    """Make an evaluator that asks a server about rows."""

    def evaluator(url, rows=ROWS, **options):
        prompts = str(write(tmp_path / "p.csv", rows))
        return DpgEvaluator(DpgEvaluatorConfig(prompts=prompts, base_url=url, model="m", **{"samples": 1, **options}))

    return evaluator


class Eyes(ChatServer):
    """Sees the colour of the picture, and says yes to the questions that `yes` gives for it."""

    def __init__(self, yes):
        super().__init__()
        self.questions = []
        lock = threading.Lock()

        def reply(body):
            text, picture = body["messages"][0]["content"]
            data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
            pixels = np.asarray(Image.open(io.BytesIO(data)))
            question = text["text"].rpartition("\n")[2]
            with lock:
                self.questions.append(question)
            colour = "red" if pixels[0, 0, 0] > pixels[0, 0, 2] else "blue"
            return 200, "application/json", [completion("Yes." if question in yes[colour] else "no")]

        self.reply = reply


def ask(number):
    return f"Question {number}?"


def tree(*parents):
    """An item whose question i + 1 depends on `parents[i]`, of the categories a, b, a, b, …"""
    return [("1", "A prompt.", "", str(i + 1), own, "ab"[i % 2], "", "", ask(i + 1)) for i, own in enumerate(parents)]


def test_answers_by_category_and_picture(make):
    yes = {"red": {"Is there a bus?", "Are there cats?", "Is it beside them?"}, "blue": {"Are there cats?"}}
    with Eyes(yes).running() as server:
        evaluator = make(server.url)
        bus, sky = evaluator.tasks()
        assert (bus.skills, sky.skills) == (("entity", "relation", "entity"), ("global",))
        assert verdicts(bus, evaluator.score(bus, RED)) == [("entity", True), ("relation", True), ("entity", True)]
        assert verdicts(bus, evaluator.score(bus, BLUE)) == [("entity", False), ("relation", False), ("entity", True)]
        assert verdicts(sky, evaluator.score(sky, RED)) == [("global", False)]
    path, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "m"
    assert server.keys[0] == "Bearer none"


def test_children_of_a_no_are_not_asked(make):
    """1 is no; 2 hangs on 1, 3 on 2; 4 is yes, 5 hangs on 4, 6 on both 1 and 4."""
    rows = tree("0", "1", "2", "0", "4", "1,4")
    said = {"red": {ask(n) for n in (2, 3, 4, 5, 6)}, "blue": {ask(n) for n in range(1, 7)}}
    with Eyes(said).running() as server:
        evaluator = make(server.url, rows)
        (task,) = evaluator.tasks()
        assert evaluator.score(task, RED) == (False, False, False, True, True, False)
        assert sorted(server.questions) == [ask(n) for n in (1, 4, 5)]
        server.questions.clear()
        assert evaluator.score(task, BLUE) == (True,) * 6
        assert sorted(server.questions) == [ask(n) for n in range(1, 7)]
        assert server.questions.index(ask(2)) < server.questions.index(ask(3))


def test_questions_that_wait_for_each_other_are_true_together(make):
    """1, 2 and 3 hang on each other in a circle, 4 on 3, and 5 on itself."""
    rows = tree("3", "1", "2", "3", "5")
    said = {"red": {ask(n) for n in (1, 3, 4, 5)}, "blue": {ask(n) for n in range(1, 6)}}
    with Eyes(said).running() as server:
        evaluator = make(server.url, rows)
        (task,) = evaluator.tasks()
        assert evaluator.score(task, RED) == (False, False, False, False, True)
        assert evaluator.score(task, BLUE) == (True,) * 5
        assert len(server.questions) == 10


def test_tasks(make):
    tasks = make("http://127.0.0.1:9/v1", samples=2, size=32).tasks()
    assert [task.id for task in tasks] == ["12-0", "12-1", "coco_7-0", "coco_7-1"]
    assert [task.prompts for task in tasks[::2]] == [{"dpg": ROWS[0][1]}, {"dpg": "A sky."}]
    assert {(task.height, task.width) for task in tasks} == {(32, 32)}
    assert json.loads(json.dumps(dict(tasks[0].truth))) == tasks[0].truth


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("yes", True),
        ("Yes, there is.", True),
        ("**No**", False),
        (" no\n", False),
        ("<think>yes? no…</think>\n\nNo.", False),
        ("<think>no</think>Yes", True),
        ("not sure", None),
        ("Yesterday", None),
        ("There is a bus, yes.", None),
        ("", None),
        ("<think>yes", None),
    ],
)
def test_what_an_answer_means(said, meant):
    assert yes_or_no(said) is meant


def test_answers_that_are_none_count_as_no(make, caplog):
    with ChatServer().running() as server:
        evaluator = make(server.url)
        _, sky = evaluator.tasks()
        for body in (completion("Perhaps."), completion(None), completion("", finish_reason="length")):
            server.says(body)
            assert evaluator.score(sky, RED) == (False,)
        refused = {"error": {"message": "filtered", "code": "content_filter"}}
        server.says(json.dumps(refused).encode(), status=400)
        assert evaluator.score(sky, RED) == (False,)
    assert caplog.messages[0] == "neither yes nor no, which counts as no: 'Perhaps.' to: Is it a photo?"
    assert caplog.messages[-1] == "the endpoint does not look at a picture, which counts as no: Is it a photo?"


def test_openai_would_take_the_requests(make):
    """The strict fake server does, and says neither yes nor no."""
    with FakeServer(like={"m": "gpt-4.1"}) as server:
        evaluator = make(server.url, concurrency=4)
        assert evaluator.score(evaluator.tasks()[0], RED) == (False, False, False)
        assert server.ledger.images().total() == 2  # not asked whether what is not there is beside itself


def test_what_fails_for_a_while_is_asked_again(make, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with FakeServer(faults=["500", "429", "drop"], like={"m": "gpt-4.1"}) as server:
        evaluator = make(server.url, retries=3, concurrency=1)
        assert evaluator.score(evaluator.tasks()[1], RED) == (False,)
        assert server.requests == 4


def test_what_stays_wrong_is_one_line(make, monkeypatch):
    with FakeServer(faults=["500"], like={"m": "gpt-4.1"}, api_key="sesame") as server:
        evaluator = make(server.url, retries=0)
        with pytest.raises(LensError, match=r"the vision model at http://127\.0\.0\.1:\d+/v1 answered 401: ") as caught:
            evaluator.score(evaluator.tasks()[1], RED)
        assert "\n" not in str(caught.value)
        monkeypatch.setenv("SESAME", "sesame")
        evaluator = make(server.url, retries=0, api_key_env="SESAME")
        with pytest.raises(LensError, match="answered 500: "):
            evaluator.score(evaluator.tasks()[1], RED)
        assert evaluator.score(evaluator.tasks()[1], RED) == (False,)
    with pytest.raises(LensError, match="gave no answer: Connection error"):
        evaluator.score(evaluator.tasks()[1], RED)
    with ChatServer().running() as other:
        for body in (b"{}", b"[]", b'{"choices": []}', b'{"choices": [{}]}', b"hello"):
            other.says(body)
            evaluator = make(other.url, retries=0)
            with pytest.raises(LensError, match=r"the vision model at \S+ (does not speak the protocol|gave no a)"):
                evaluator.score(evaluator.tasks()[1], RED)


def test_settings_that_cannot_be(make):
    with pytest.raises(LensError, match="OpenAI needs an API key: export OPENAI_API_KEY=…"):
        make("https://api.openai.com/v1")
    for url, said in (("ftp://x", "http://"), ("http://me:secret@x/v1", "credentials")):
        with pytest.raises(ValidationError, match=said):
            make(url)
