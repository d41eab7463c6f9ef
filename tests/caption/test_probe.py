"""The probe against servers on a socket: what it reports of limits, usage, image rule, price and shutdown."""

from __future__ import annotations

import base64
import datetime
import json
import threading
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lens_caption.captioners.openai.config import OpenAIConfig
from lens_caption.probe import probe, probe_images, rate_limits
from lens_caption.profiles import RetiredModelError, UnknownPriceError, load_profile
from lens_caption.testing.openai_server import FakeServer
from lens_core.errors import ConfigError, LensError
from lens_core.images import header

NOV = datetime.date(2026, 11, 25)
PROFILE = """
model: m
names: ["m-20*"]
checked: 2026-11-25
sources: [the ledger of the server]
image_rule: {rule: patches, side: 32}
prices: {standard: {input_per_million: 2, output_per_million: 8}}
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.delenv("LENS_CAPTION_PROFILES", raising=False)


@pytest.fixture
def profiles(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "m.yaml").write_text(PROFILE)
    return folder


def run(server_url, folder, *, model="m", count=20, budget="1.00", **options):
    config = OpenAIConfig(model=model, base_url=server_url, **{"max_side": 512, **options})
    profile = load_profile(model, base_url=server_url, folder=folder)
    return probe(config, profile, count=count, budget=Decimal(budget), today=NOV)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_it_reports_what_the_ledger_says(profiles, api):
    with FakeServer() as server:
        report = run(server.url, profiles, api=api)
        ledger = list(server.ledger)
    assert len(ledger) == len(report.answers) == 20
    plain = report.to_json()
    assert plain["usage"]["input_tokens"] == sum(entry.input_tokens for entry in ledger)
    assert plain["usage"]["output_tokens"] == sum(entry.output_tokens for entry in ledger)
    assert plain["served_models"] == ["m-2026-01-01"]
    assert plain["service_tiers"] == ["default"]
    assert plain["image_rule"]["factor"] == pytest.approx(1, abs=0.001)
    assert "the image rule of the profile fits, to 0.0%" in plain["findings"]
    assert report.dollars == sum(Decimal(2 * e.input_tokens + 8 * e.output_tokens) for e in ledger) / 10**6
    assert any("compare with its bill" in line for line in plain["findings"])
    assert 0 < plain["latency_s"]["median"] <= plain["latency_s"]["longest"]


def test_a_wrong_image_rule_is_told_and_the_right_one_named(profiles):
    (profiles / "m.yaml").write_text(PROFILE.replace("side: 32", "side: 32, factor: 1.2"))
    with FakeServer() as server:
        report = run(server.url, profiles)
    assert report.calibration.factor == pytest.approx(1 / 1.2, rel=0.01)
    (line,) = (line for line in report.findings if "image rule of the profile is off" in line)
    assert "off by 16." in line


def test_failures_are_counted_with_their_reason(profiles):
    with FakeServer(faults=["ok", "500", "429", "html", "truncated-json", "drop", "quota"]) as server:
        report = run(server.url, profiles, count=10)
    plain = report.to_json()
    assert plain["answers"] == 4
    reasons = " ".join(plain["errors"])
    for word in (
        "HTTP 500: The server had an error",
        "HTTP 429: Rate limit reached",
        "no JSON",
        "HTTP 429: You exceeded",
    ):
        assert word in reasons
    assert sum(plain["errors"].values()) == 6


def test_limits_and_shutdown_as_the_server_tells_them():
    with FakeServer(rpm=500, tpm=200_000) as server:
        report = run(server.url, None, model="gpt-4.1", max_side=768)
        cost = server.ledger.total_cost()
    assert report.limits["limit-requests"] == "500"
    assert report.limits["limit-tokens"] == "200000"
    assert report.limits["remaining-requests"]
    assert report.limits["reset-tokens"].endswith("s")
    assert report.dollars == cost
    assert "the image rule of the profile fits, to 0.0%" in report.findings
    assert any(line.startswith("gpt-4.1 shuts down on 2027-01-14, in 50 days") for line in report.findings)
    assert not any("announces the shutdown" in line for line in report.findings)  # it says the same day


def test_nobody_there(profiles):
    with FakeServer() as server:
        url = server.url
    report = run(url, profiles, count=2)
    assert report.calibration is None
    assert report.to_json()["answers"] == 0
    assert any("no answer had a usage" in line for line in report.findings)


def test_what_refuses_everything_stops_at_the_first_request(profiles, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-secret")
    with FakeServer(api_key="right") as server:
        with pytest.raises(LensError, match="refuses the model 'm': HTTP 401: Incorrect API key") as caught:
            run(server.url, profiles)
        assert len(server.ledger) == 0
        monkeypatch.setenv("MY_KEY", "right")
        assert run(server.url, profiles, count=1, api_key_env="MY_KEY").to_json()["answers"] == 1
    assert "wrong-secret" not in str(caught.value)


def test_nothing_is_sent_that_could_cost_too_much(profiles, monkeypatch):
    with FakeServer() as server:
        with pytest.raises(ConfigError, match=r"20 images could cost \$0\.\d\d, which is more than --budget 0.05"):
            run(server.url, profiles, budget="0.05")
        with pytest.raises(RetiredModelError):
            run(server.url, profiles, model="gpt-4.1-nano")
        (profiles / "m.yaml").write_text(PROFILE.split("prices:")[0])
        with pytest.raises(UnknownPriceError):
            run(server.url, profiles)
        assert server.requests == 0
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LensError, match="export OPENAI_API_KEY="):
        run("https://api.openai.com/v1", None, model="gpt-6-luna")


def test_the_images_differ_and_fit():
    images = probe_images(20, 512)
    assert len(set(images)) == 20
    infos = [header(data) for data in images]
    assert max(max(info.width, info.height) for info in infos) == 512
    assert len({(info.width, info.height) for info in infos}) == 10


def test_rate_limit_headers():
    headers = {
        "X-RateLimit-Limit-Requests": "10000",
        "x-ratelimit-remaining-tokens": "29998",
        "x-ratelimit-reset-tokens": "6m0s",
        "x-ratelimit-reset-requests": "",
        "x-request-id": "req-1",
        "x-ratelimit-remaining-requests": "5\x1b[2J",
    }
    assert rate_limits(headers) == {
        "limit-requests": "10000",
        "remaining-requests": "5 [2J",
        "remaining-tokens": "29998",
        "reset-tokens": "6m0s",
    }


class _Provider(BaseHTTPRequestHandler):
    """A provider with limits in its headers, a price in its usage, the tiles of gpt-4.1, and a model that ends soon."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._reply({"id": self.path.rsplit("/", 1)[-1], "object": "model", "shutdown_date": "2027-02-01"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        url = next(part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url")
        info = header(base64.b64decode(url.partition(",")[2]))
        tokens = 300 + load_profile("gpt-4.1", base_url=None, folder=None).image_tokens(info.width, info.height)
        usage = {"prompt_tokens": tokens, "completion_tokens": 10, "cost": tokens * 4e-6}
        choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
        self._reply({"id": "1", "model": "someone-else", "choices": [choice], "usage": usage})

    def log_message(self, *_):
        pass

    def _reply(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("x-ratelimit-limit-requests", "500")
        self.send_header("x-ratelimit-limit-tokens", "30000")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def provider():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_a_provider_that_differs_in_everything(provider, profiles):
    report = run(provider, profiles, max_side=768)
    assert report.limits == {"limit-requests": "500", "limit-tokens": "30000"}
    findings = "\n".join(report.findings)
    assert "these profiles' rules do fit: gpt-4.1, gpt-4o" in findings
    assert "served by someone-else, which the profile does not name" in findings
    assert "the endpoint charged $" in findings
    assert "by the profile's price it would be $" in findings
    assert "announces the shutdown for 2027-02-01, the profile says none" in findings


def test_probe_command(lens, provider, profiles):
    settings = ["--set", "model=m", "--set", f"base_url={provider}", "--set", "max_side=256", "-n", "10"]
    told = lens("caption", "probe", *settings, LENS_CAPTION_PROFILES=str(profiles))
    assert told.returncode == 0, told.stderr
    for word in ("limit-requests 500", "limit-tokens 30000", "10 of 10", "note: the image rule of the profile is off"):
        assert word in told.stdout
    plain = json.loads(lens("caption", "probe", *settings, "--json", LENS_CAPTION_PROFILES=str(profiles)).stdout)
    assert plain["usage"]["output_tokens"] == 100
    wrong = lens("caption", "probe", "--captioner", "scene-graph")
    assert wrong.returncode == 2
    assert "asks no endpoint" in wrong.stderr
    assert "no amount of dollars" in lens("caption", "probe", *settings, "--budget", "much").stderr


def test_a_redirect_is_not_followed_with_the_key(profiles, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    asked = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization"))
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    class Redirecting(Stranger):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{stranger.server_address[1]}/v1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

    stranger, redirecting = (ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Stranger, Redirecting))
    for server in (stranger, redirecting):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        report = run(f"http://127.0.0.1:{redirecting.server_address[1]}/v1", profiles, count=2)
    finally:
        for server in (stranger, redirecting):
            server.shutdown()
            server.server_close()
    assert asked == []
    assert list(report.to_json()["errors"]) == ["HTTP 302: no JSON in the answer"]
