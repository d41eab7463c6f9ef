"""The fake server when things go wrong: limits, quotas, and every fault, on schedule."""

from __future__ import annotations

import base64
import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_caption.testing.openai_server import (
    FAULTS,
    FakeServer,
    Faults,
    Limits,
    ServerProcess,
    go_duration,
    number_in_text,
    numbered_jpeg,
)
from lens_caption.testing.openai_server.faults import BILLED_AND_LOST, CONTENT, GROUPS, IDENTITY, TEXT


def chat(number=1, **options):
    url = f"data:image/jpeg;base64,{base64.b64encode(numbered_jpeg(number, 64, 64)).decode()}"
    content = [{"type": "text", "text": "Describe."}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": "test-model", "messages": [{"role": "user", "content": content}], **options}


def send(server, number=1, timeout=20, **options):
    """Status, headers and raw body; what breaks the connection raises."""
    data = json.dumps(chat(number, **options)).encode()
    request = urllib.request.Request(f"{server.url}/chat/completions", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def text_of(raw):
    return json.loads(raw)["choices"][0]["message"]["content"]


# --- limits ---


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0004, "1ms"),
        (0.721, "721ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3723.25, "1h2m3.25s"),
    ],
)
def test_durations_are_written_as_go_does(seconds, text):
    assert go_duration(seconds) == text


@settings(deadline=None)
@given(st.floats(0, 1e6))
def test_durations_can_be_read_back(seconds):
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    parts = re.findall(r"([\d.]+)(h|ms|m|s)", go_duration(seconds))
    assert abs(sum(float(value) * units[unit] for value, unit in parts) - seconds) <= 0.0011


def test_headers_say_what_is_left():
    with FakeServer(rpm=60, tpm=6000) as server:
        _, headers, raw = send(server, max_tokens=400)
        assert headers["x-ratelimit-limit-requests"] == "60"
        assert headers["x-ratelimit-remaining-requests"] == "59"
        assert headers["x-ratelimit-reset-requests"] in {"1s"} | {f"{n}ms" for n in range(900, 1000)}
        assert headers["x-ratelimit-limit-tokens"] == "6000"
        used = json.loads(raw)["usage"]["total_tokens"]
        assert 6000 - used - 1 <= int(headers["x-ratelimit-remaining-tokens"]) <= 6000 - used + 50
        assert headers["x-request-id"].startswith("req_")
    with FakeServer() as server:
        assert "x-ratelimit-limit-requests" not in send(server)[1]


def test_too_many_requests_are_refused_until_the_bucket_fills():
    with FakeServer(limits=Limits(rpm=120, window_s=2)) as server:
        answered = 0
        while (answer := send(server))[0] == 200:
            answered += 1
        assert answered >= 4  # and more where they took so long that the bucket filled meanwhile
        status, headers, raw = answer
        assert status == 429
        error = json.loads(raw)["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "requests")
        assert "Limit 120" in error["message"]
        wait = int(headers["retry-after-ms"]) / 1000
        assert 0 < wait <= 0.5
        assert headers["retry-after"] == "1"
        time.sleep(wait + 0.05)
        assert send(server)[0] == 200
        assert len(server.ledger) == answered + 1


def test_a_refused_request_counts_as_a_request(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limits = Limits(rpm=60, window_s=1)
    assert limits.admit("m", 1).refusal is None
    for _ in range(30):
        now[0] += 0.9
        assert limits.admit("m", 1).refusal is not None  # hammering never gets in
    assert limits.admit("another", 1).refusal is None


def test_who_comes_back_when_told_is_let_in(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limits = Limits(rpm=60, window_s=1)
    for pause in (0.0, 0.1, 0.5, 0.9):
        limits.admit("m", 1)
        now[0] += pause
        refused = limits.admit("m", 1)
        assert refused.refusal is not None
        now[0] += int(refused.headers["retry-after-ms"]) / 1000
        assert limits.admit("m", 1).refusal is None
        now[0] += 5


def test_tokens_are_reserved_and_given_back():
    limits = Limits(tpm=1000)
    assert limits.admit("m", 900).refusal is None
    refused = limits.admit("m", 900)
    assert refused.kind == "tokens"
    assert "Requested 900" in refused.refusal
    limits.settle("m", 800)
    assert limits.admit("m", 850).refusal is None
    strict = Limits(tpm=1000, refund=False)
    strict.admit("m", 900)
    strict.settle("m", 800)
    assert strict.admit("m", 850).refusal is not None


def test_a_request_larger_than_the_limit_never_passes():
    refused = Limits(tpm=1000).admit("m", 1001)
    assert "Request too large" in refused.refusal
    assert "retry-after" not in refused.headers


def test_limits_are_used_up_and_no_more(monkeypatch):
    """An hour of requests as fast as the limit allows, on a clock of the test's own."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for quantum in (None, 5.0):
        limits = Limits(rpm=600, window_s=1, quantum_s=quantum)
        admitted = 0
        while now[0] < 4600:
            answer = limits.admit("m", 1)
            if answer.refusal is None:
                admitted += 1
                continue
            now[0] += int(answer.headers["retry-after-ms"]) / 1000 + 1e-6
        assert 0.95 * 36_000 <= admitted <= 36_000 + 60
        now[0] = 1000.0


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("both", {"retry-after", "retry-after-ms"}),
        ("s", {"retry-after"}),
        ("ms", {"retry-after-ms"}),
        ("missing", set()),
        ("wrong", {"retry-after"}),
    ],
)
def test_retry_after_in_every_way(how, names):
    headers = Limits(retry_after=how).retry_headers(2.5)
    assert headers.keys() == names
    assert headers.get("retry-after", "3") == ("0" if how == "wrong" else "3")
    assert headers.get("retry-after-ms", "2500") == "2500"
    with pytest.raises(ValueError, match="retry_after is one of"):
        Limits(retry_after="never")


def test_a_quota_in_dollars():
    with FakeServer(prices={"test-model": ("1000", "1000")}, quota=0.05) as server:
        answers = [send(server, number) for number in range(4)]
        assert [status for status, _, _ in answers] == [200, 429, 429, 429]
        assert json.loads(answers[1][2])["error"]["code"] == "insufficient_quota"


# --- faults ---


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("429", 429, "rate_limit_exceeded"),
        ("429-retry-after", 429, "rate_limit_exceeded"),
        ("429-retry-after-ms", 429, "rate_limit_exceeded"),
        ("flex-unavailable", 429, "resource_unavailable"),
        ("quota", 429, "insufficient_quota"),
        ("400", 400, "invalid_image"),
        ("500", 500, "server_error"),
        ("502", 502, "bad_gateway"),
        ("503", 503, "overloaded"),
        ("408", 408, "timeout"),
    ],
)
def test_faults_with_a_status_bill_nothing(fault, status, code):
    with FakeServer(faults=[fault]) as server:
        seen, headers, raw = send(server)
        assert (seen, json.loads(raw)["error"]["code"]) == (status, code)
        assert headers["retry-after"] == ("1" if fault == "429-retry-after" else None)
        assert headers["retry-after-ms"] == ("200" if fault == "429-retry-after-ms" else None)
        assert len(server.ledger) == 0
        assert send(server)[0] == 200


def test_broken_answers():
    with FakeServer(faults=["html", "truncated-json", "drop", "drop-after-billing"], slow_s=0.2) as server:
        status, headers, raw = send(server)
        assert (status, headers.get_content_type()) == (200, "text/html")
        assert b"<html>" in raw
        status, _, raw = send(server)
        assert status == 200
        with pytest.raises(ValueError, match="Unterminated"):
            json.loads(raw)
        for billed in (0, 1):
            with pytest.raises((ConnectionError, http.client.HTTPException, urllib.error.URLError)):
                send(server)
            assert len(server.ledger) == billed
        assert server.ledger[0].outcome == "drop-after-billing"


def test_what_is_billed_and_lost():
    with FakeServer(faults=["truncated-json-after-billing", "empty-choices"]) as server:
        _, _, raw = send(server)
        with pytest.raises(ValueError, match=r"."):
            json.loads(raw)
        assert json.loads(send(server)[2])["choices"] == []
        assert [entry.outcome for entry in server.ledger] == ["truncated-json-after-billing", "empty-choices"]
        assert all(entry.output_tokens > 0 for entry in server.ledger)


def test_slow_slower_and_never():
    with FakeServer(faults=["slow", "slow-drip", "hang"], slow_s=0.3, drip_s=0.4, hang_s=0.2) as server:
        for least in (0.3, 0.4):
            started = time.monotonic()
            assert number_in_text(text_of(send(server)[2])) == 1
            assert time.monotonic() - started >= least
        with pytest.raises((ConnectionError, http.client.HTTPException, urllib.error.URLError)):
            send(server)
        assert len(server.ledger) == 2


def test_faults_of_the_answer_in_both_apis():
    with FakeServer() as server:
        seen = {}
        for fault in (*CONTENT, *TEXT, *IDENTITY):
            server.faults.extend(["ok", fault])
            send(server, 7)
            seen[fault] = json.loads(send(server, 3, service_tier="flex")[2])
        choices = {fault: body["choices"][0] for fault, body in seen.items()}
        assert choices["refusal"]["message"]["refusal"]
        assert choices["refusal"]["message"]["content"] is None
        assert choices["refusal-prose"]["message"]["content"].startswith("I'm sorry")
        assert choices["content-filter"]["finish_reason"] == "content_filter"
        assert choices["length"]["finish_reason"] == "length"
        assert choices["length"]["message"]["content"]
        assert (choices["empty"]["finish_reason"], choices["empty"]["message"]["content"]) == ("length", "")
        assert number_in_text(choices["swapped"]["message"]["content"]) == 7
        assert seen["renamed"]["model"] == "another-model-2026-01-01"
        assert seen["downgraded"]["service_tier"] == "default"
        assert seen["loop"]["service_tier"] == "flex"
        tiers = {entry.outcome: entry.tier for entry in server.ledger if entry.outcome != "ok"}
        assert tiers["downgraded"] == "default"
        assert tiers["swapped"] == "flex"
        assert server.faults.met["ok"] == len(seen)


@pytest.mark.parametrize(
    ("fault", "gate"),
    [
        ("refusal-prose", "refusal"),
        ("loop", "loops"),
        ("boilerplate", "boilerplate"),
        ("reasoning-leak", "reasoning"),
        ("wrong-language", "language"),
    ],
)
def test_the_gates_of_lens_catch_what_is_wrong_with_texts(fault, gate):
    from lens_caption.quality.config import GatesConfig
    from lens_caption.quality.gates import failures

    with FakeServer(faults=[fault], words=60) as server:
        assert gate in [name for name, _ in failures(text_of(send(server)[2]), GatesConfig())]


def test_a_schema_is_broken_on_request():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": schema}}
    with FakeServer(faults=["schema-invalid"]) as server:
        text = text_of(send(server, response_format=shape)[2])
        with pytest.raises(ValueError, match="Expecting value"):
            json.loads(text)
        assert number_in_text(json.loads(text_of(send(server, response_format=shape)[2]))["a"]) == 1


def drawn(faults, images, attempts=1):
    return {(image, attempt): faults.for_request(str(image), None) for image in images for attempt in range(attempts)}


def test_a_seed_decides_whatever_the_order():
    first = drawn(Faults(rate=0.2, seed=4), range(2000), 2)
    again = drawn(Faults(rate=0.2, seed=4), range(1999, -1, -1), 2)
    assert first == again
    assert first != drawn(Faults(rate=0.2, seed=5), range(2000), 2)
    share = sum(name != "ok" for name in first.values()) / len(first)
    assert 0.18 < share < 0.22
    assert set(first.values()) - {"ok"} == set(GROUPS["passing"])
    # Another try meets another fate.
    assert any(first[image, 0] != "ok" and first[image, 1] == "ok" for image in range(2000))


def test_scripts_come_before_the_rate_and_one_image_before_all():
    faults = Faults(["ok", "500"], rate=1, kinds=["refusal"], always={17: "400", "abc": "503"})
    assert [faults.for_request("a", None) for _ in range(3)] == ["ok", "500", "refusal"]
    assert [faults.for_request("a", 17), faults.for_request("abc", None)] == ["400", "503"]
    faults.set_rate(0)
    assert faults.for_request("a", 1) == "ok"
    assert faults.met == Counter({"ok": 2, "500": 1, "refusal": 1, "400": 1, "503": 1})


@pytest.mark.parametrize(
    "options",
    [{"script": ["nonsense"]}, {"kinds": ["nonsense"]}, {"rate": 1.5}, {"batch_script": ["500"]}, {"control_rate": -1}],
)
def test_what_no_schedule_can_be(options):
    with pytest.raises(ValueError, match=r"unknown fault|a rate is between"):
        Faults(**options)


def test_flex_finds_no_resources_at_a_rate():
    with FakeServer(faults=Faults(flex_rate=1)) as server:
        status, _, raw = send(server, service_tier="flex")
        assert (status, json.loads(raw)["error"]["code"]) == (429, "resource_unavailable")
        assert send(server)[0] == 200


def test_faults_can_be_set_over_http():
    with FakeServer() as server:

        def post(value):
            data = json.dumps(value).encode()
            with urllib.request.urlopen(urllib.request.Request(f"{server.control_url}/_faults", data)) as answer:
                return json.loads(answer.read())

        post({"script": ["500"], "rate": 0})
        assert send(server)[0] == 500
        assert post({}) == {"500": 1}
        for wrong in ({"script": ["nonsense"]}, {"rate": 7}, {"seed": 1}):
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(wrong)
            caught.value.close()
            assert caught.value.code == 400


def test_every_fault_and_its_group_is_known():
    grouped = {name for names in GROUPS.values() for name in names}
    assert set(FAULTS) - grouped == {"ok", "quota", "400", "429-exhausted", "flex-unavailable", "hang"}
    assert set(BILLED_AND_LOST) <= set(GROUPS["passing"])


# --- clients that go away ---


def test_a_request_whose_client_is_gone_is_billed():
    with FakeServer(delay_s=2) as server:
        with pytest.raises(TimeoutError):
            send(server, timeout=0.1)
        deadline = time.monotonic() + 60
        while not (server.in_flight or len(server.ledger)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(server.ledger) == 0
        while server.in_flight and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(server.ledger) == 1


def test_many_at_once_each_with_its_own_answer():
    with FakeServer(delay_s=1, jitter=0.5) as server:
        texts, together = {}, 0

        def ask(number):
            texts[number] = text_of(send(server, number)[2])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            together = max(together, server.in_flight)
            time.sleep(0.01)
        assert together > 4
        assert {number: number_in_text(text) for number, text in texts.items()} == {n: n for n in range(40)}
        assert set(server.ledger.images().values()) == {1}
        assert {entry.number for entry in server.ledger} == set(range(40))


# --- command line ---


def test_the_command_serves_in_a_process_of_its_own(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    with ServerProcess(
        "--faults", "500", "--price", "test-model=2/8", "--ledger", str(ledger), "--rpm", "600", "--clock", "manual"
    ) as server:
        assert send(server)[0] == 500
        status, headers, _ = send(server)
        assert (status, headers["x-ratelimit-limit-requests"]) == (200, "600")
        assert server.ask("/_ledger")["billed"] == 1
        now = server.ask("/_clock")["now"]
        assert server.ask("/_clock", {"advance": 60})["now"] == now + 60
        assert server.stop().startswith("2 requests, 1 billed, cost $0.000")
        assert server.process.returncode == 0
    assert len(ledger.read_text().splitlines()) == 1


def test_the_ledger_survives_the_death_of_the_server(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    with ServerProcess("--ledger", str(ledger)) as server:
        for number in range(5):
            send(server, number)
        server.process.kill()
        server.process.wait()
    with ServerProcess("--ledger", str(ledger)) as server:
        assert server.ask("/_ledger")["billed"] == 5


def test_a_process_that_does_not_start_says_why():
    with pytest.raises(RuntimeError, match="unknown fault 'nonsense'"):
        ServerProcess("--faults", "nonsense")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--faults", "nonsense"], "unknown fault 'nonsense'"),
        (["--rate", "2"], "a rate is between 0 and 1"),
        (["--price", "m=cheap"], "is not dollars as IN/OUT"),
        (["--like", "m"], "is not NAME=VALUE"),
        (["--clock", "backwards"], "backwards"),
        (["--retry-after", "never"], "invalid choice"),
        (["--ledger", "/nowhere/ledger"], "No such file"),
    ],
)
def test_wrong_options_are_one_line(arguments, words, capsys):
    from lens_caption.testing.openai_server import main

    with pytest.raises(SystemExit) as caught:
        main(["--port", "0", *arguments])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert words in said.splitlines()[-1]
    assert "Traceback" not in said


def test_every_option_is_on_the_page():
    from pathlib import Path

    from lens_caption.testing.openai_server.command import _parser

    page = (Path(__file__).parents[2] / "docs" / "how-to" / "rehearse-with-the-fake-server.md").read_text()
    options = [name for action in _parser()._actions for name in action.option_strings if name.startswith("--")]
    assert [name for name in options if f"`{name}" not in page and name != "--help"] == []
    assert [name for name in FAULTS if f"`{name}`" not in page] == []
