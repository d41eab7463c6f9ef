"""Lines of the log, for machines and for people."""

from __future__ import annotations

import io
import json
import logging

import pytest

from lens_serve.config import WatchSettings
from lens_serve.watch.logs import configure, log_request, note

PROMPT = 'a star\n{"level": "error"}\r\n\x1b[2Jred'


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Route:
    path = "/v1/images/generations"


@pytest.fixture(autouse=True)
def restored():
    logger = logging.getLogger("lens_serve")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def logged(stream, **settings):
    configure(WatchSettings(**settings), stream)
    scope = {"method": "POST", "route": Route, "state": {"request_id": "abc", "key_id": "k1"}}
    note(scope, model="lens", prompt=PROMPT)
    note(scope, size="1024x768", steps=4, lora=None)
    log_request(scope, 200, 1.23456)
    return stream.getvalue()


def test_a_line_is_json():
    line = json.loads(logged(io.StringIO()))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "message": "POST /v1/images/generations 200",
        "request": "abc",
        "method": "POST",
        "route": "/v1/images/generations",
        "status": 200,
        "seconds": 1.2346,
        "key": "k1",
        "model": "lens",
        "size": "1024x768",
        "steps": 4,
    }


def test_prompts_are_told_when_asked_for_and_stay_on_their_line():
    text = logged(io.StringIO(), log_prompts=True)
    assert text.count("\n") == 1
    assert json.loads(text)["prompt"] == PROMPT


class Everything(logging.Handler):
    """Somebody else's handler; it is given whole records."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append({**vars(record)})


@pytest.mark.parametrize("log_prompts", [False, True])
def test_other_handlers_get_no_prompt_either(log_prompts):
    other, logger = Everything(), logging.getLogger("lens_serve.requests")
    logger.addHandler(other)
    try:
        logged(io.StringIO(), log_prompts=log_prompts)
    finally:
        logger.removeHandler(other)
    (record,) = other.records
    assert (record["facts"].get("prompt") == PROMPT) is log_prompts
    assert ("a star" in str(record)) is log_prompts


@pytest.mark.parametrize("log_prompts", [False, True])
def test_a_terminal_gets_plain_text(log_prompts):
    text = logged(Terminal(), log_prompts=log_prompts)
    assert "POST /v1/images/generations 200 " in text
    assert 'size="1024x768" steps=4' in text
    assert ("a star" in text) is log_prompts
    assert text.count("\n") == 1
    assert "\x1b" not in text


def test_requests_of_no_route_do_not_tell_their_path():
    stream = io.StringIO()
    configure(WatchSettings(), stream)
    log_request({"method": "GET", "path": "/secret"}, 404, 0.0)
    assert json.loads(stream.getvalue())["route"] == "other"
    assert "secret" not in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_errors_come_with_their_traceback(stream):
    configure(WatchSettings(), stream)
    try:
        raise ZeroDivisionError("nought")
    except ZeroDivisionError:
        logging.getLogger("lens_serve.api").exception("it failed")
    assert "ZeroDivisionError: nought" in stream.getvalue()
    assert "error" in stream.getvalue()


def test_configuring_again_replaces():
    first, second = io.StringIO(), io.StringIO()
    configure(WatchSettings(), first)
    configure(WatchSettings(), second)
    logging.getLogger("lens_serve").info("hello")
    assert first.getvalue() == ""
    assert second.getvalue().count("hello") == 1
