"""Reviews: decisions survive kills, the original stays, and nobody but the reviewer gets in: over real sockets."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from caption.browser import Browser
from caption.outputs import HOSTILE, World, picture
from lens_caption.layers import sources
from lens_caption.review.decisions import DecisionLog, caption_sha256, read_decisions
from lens_caption.review.layer import only_layer, reviewed_rows
from lens_caption.review.publish import publish_layer
from lens_caption.review.server import ReviewServer
from lens_caption.review.session import MAX_TEXT, Session, pick_samples
from lens_core.config.pipeline import load_pipeline
from lens_core.errors import ArtifactError, ConfigError
from lens_core.pipeline.progress import Progress
from lens_core.pipeline.runner import run_pipeline
from lens_core.storage.artifacts import load_artifact
from lens_core.storage.captions import CaptionRow, read_captions

LENS = Path(sys.executable).with_name("lens")


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.images(
        [{"data": picture(number), "name": f"{HOSTILE[number % len(HOSTILE)]} {number}"} for number in range(20)]
    )
    return made


@pytest.fixture
def serve(tmp_path):
    """Start a server on real captions: `serve(artifact)`."""
    running = []

    def start(captions, *, pick="stored", count=100):
        layer = only_layer(captions, None)
        samples = pick_samples(captions, layer, pick=pick, count=count, seed=0)
        log = DecisionLog(tmp_path / "decisions.jsonl", "kim")
        server = ReviewServer(Session(samples, layer, sources([captions]).images, log))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append((server, log))
        return server

    yield start
    for server, log in running:
        server.shutdown()
        server.server_close()
        log.close()


def ask(server, path, body=None, *, token=True, method=None, **headers):
    """One request of a real client: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    sent = {"Authorization": f"Bearer {server.token}"} if token is True else {}
    if body is not None:
        sent["Content-Type"] = "application/json"
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    data = json.dumps(body) if isinstance(body, dict | list) else body
    connection.request(method or ("GET" if body is None else "POST"), path, data, sent)
    answer = connection.getresponse()
    told = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return told


def raw(server, text):
    """Bytes as they are over a socket; the status line that comes back."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(text.encode("latin-1"))
        return connection.makefile("rb").readline().decode()


def test_everything_that_holds_data_needs_the_token(world, serve):
    server = serve(world.captions("dense", ["a secret caption"]))
    paths = ["/api/overview", "/api/items/0", "/api/pictures/0", "/api/nothing"]
    for path in paths:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": server.token},
            {"Cookie": server.token},
        ):
            status, _, body = ask(server, path, token=False, **headers)
            assert status == 401, (path, headers)
            assert b"secret" not in body
    assert ask(server, "/api/items/0/decision", {"action": "accept"}, token=False)[0] == 401
    assert server.session.log.decisions == {}
    for path in ("/", "/review.js", "/review.css"):
        status, headers, body = ask(server, path, token=False)
        assert status == 200
        assert "secret" not in body.decode()
        assert server.token not in body.decode()
        assert "Set-Cookie" not in headers
    assert server.token in server.url.partition("#")[2]  # a browser sends nothing that stands behind #
    assert len(server.token) >= 40


def test_only_this_machines_names_are_answered(world, serve):
    server = serve(world.captions("dense", ["a cat"]))
    assert server.server_address[0] == "127.0.0.1"
    port = server.server_port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert ask(server, "/api/overview", Host=host)[0] == 200
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port}.evil.example",
        f"[::1]:{port}",
        "",
    ):
        assert ask(server, "/", Host=host)[0] == 421, host
        assert ask(server, "/api/items/0/decision", {"action": "accept"}, Host=host)[0] == 421
    assert " 421 " in raw(server, "GET / HTTP/1.1\r\n\r\n")
    twice = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n"
    assert " 421 " in raw(server, twice)
    assert server.session.log.decisions == {}


def test_another_site_can_change_nothing(world, serve):
    server = serve(world.captions("dense", ["a cat"]))
    path, body = "/api/items/0/decision", {"action": "reject"}
    # Even with the token, which no other site has.
    assert ask(server, path, body, Origin="http://evil.example")[0] == 403
    assert ask(server, path, body, Origin="null")[0] == 403
    # What an HTML form can send needs no permission of the browser's: the token is missing, and the type is wrong.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert ask(server, path, json.dumps(body), token=False, Content_Type=kind)[0] == 401
        assert ask(server, path, json.dumps(body), Content_Type=kind)[0] == 415
    # A preflight is granted nothing.
    status, headers, _ = ask(server, path, method="OPTIONS", Origin="http://evil.example", token=False)
    assert status >= 400
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert server.session.log.decisions == {}
    assert ask(server, path, body, Origin=server.origin)[0] == 200
    assert len(server.session.log.decisions) == 1


def test_headers_forbid_what_the_page_does_not_need(world, serve):
    server = serve(world.captions("dense", ["a cat"]))
    for path in ("/", "/api/items/0", "/api/pictures/0", "/nothing"):
        headers = ask(server, path)[1]
        policy = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"accept"',
        b"[" * 100_000,
        {},
        {"action": "publish"},
        {"action": None},
        {"action": ["accept"]},
        {"action": "edit"},
        {"action": "edit", "text": ""},
        {"action": "edit", "text": " \n "},
        {"action": "edit", "text": 5},
        {"action": "edit", "text": None},
        {"action": "edit", "text": "x" * (MAX_TEXT + 1)},
        b'{"action": "edit", "text": "\\ud800"}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_decision_is_refused(world, serve, body):
    server = serve(world.captions("dense", ["a cat"]))
    status, _, told = ask(server, "/api/items/0/decision", body)
    assert status == 400
    assert json.loads(told)["error"]
    assert server.session.log.decisions == {}


def test_odd_requests_are_refused_and_the_server_goes_on(world, serve):
    server = serve(world.captions("dense", ["a cat"]))
    for path in (
        "/api/items/1",
        "/api/items/-1",
        "/api/items/0x0",
        "/api/items/",
        "/../secrets",
        "/api/items/99999999999999999999",
    ):
        assert ask(server, path)[0] == 404, path
    head = f"Host: 127.0.0.1:{server.server_port}\r\nAuthorization: Bearer {server.token}\r\n"
    head += "Content-Type: application/json\r\n"
    for rest in (
        "Content-Length: 99999999\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: x\r\n",
        "",
        "Transfer-Encoding: chunked\r\n",
    ):
        line = raw(server, f"POST /api/items/0/decision HTTP/1.1\r\n{head}{rest}\r\n")
        assert re.match(r"HTTP/1.1 4(11|13) ", line), rest
    # Digits of another script, as they stand in UTF-8.
    assert " 404 " in raw(server, f"GET /api/items/\xd9\xa3 HTTP/1.1\r\n{head}\r\n")
    assert ask(server, "/api/overview")[0] == 200


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_over_the_socket_leave_the_server_standing(one_server, noise):
    with socket.create_connection(("127.0.0.1", one_server.server_port), timeout=10) as connection:
        connection.sendall(noise + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    assert ask(one_server, "/api/overview")[0] == 200


@pytest.fixture(scope="module")
def one_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    world = World(folder)
    world.images([{"data": picture(1), "name": "a"}])
    captions = world.captions("dense", ["a cat"])
    log = DecisionLog(folder / "d.jsonl")
    samples = pick_samples(captions, "dense", pick="stored", count=1, seed=0)
    server = ReviewServer(Session(samples, "dense", world.stored, log))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    log.close()


def test_pictures_are_drawn_anew_and_the_right_ones(world, serve, tmp_path):
    server = serve(world.captions("dense", [f"caption {number}" for number in range(20)]))
    for number in (0, 7, 19):
        status, headers, data = ask(server, f"/api/pictures/{number}")
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        shown = np.asarray(Image.open(io.BytesIO(data))).astype(int)
        assert np.abs(shown[20, 30] - [number * 37 % 256, number * 91 % 256, 0]).max() <= 8
        assert json.loads(ask(server, f"/api/items/{number}")[2])["text"] == f"caption {number}"
    other = World(tmp_path / "other")
    other.images([{"data": b"<svg onload=alert(1)>", "name": "x"}])
    server = ReviewServerFor(other, tmp_path)
    with server as running:
        status, headers, told = ask(running, "/api/pictures/0")
        assert status == 422
        assert "cannot be shown" in json.loads(told)["error"]


class ReviewServerFor:
    def __init__(self, world, folder):
        captions = world.captions("dense", ["x"])
        self.log = DecisionLog(folder / "other.jsonl")
        samples = pick_samples(captions, "dense", pick="stored", count=1, seed=0)
        self.server = ReviewServer(Session(samples, "dense", world.stored, self.log))

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self.server

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.log.close()


def test_many_threads_decide_at_once(world, serve, tmp_path):
    server = serve(world.captions("dense", [f"caption {number}" for number in range(20)]))

    def decide(number):
        for turn in range(5):
            text = f"{number} {turn}"
            assert ask(server, f"/api/items/{number}/decision", {"action": "edit", "text": text})[0] == 200
            assert ask(server, f"/api/pictures/{number}")[0] == 200

    threads = [threading.Thread(target=decide, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    decisions = read_decisions(tmp_path / "decisions.jsonl")
    assert decisions == server.session.log.decisions
    assert {decision.text for decision in decisions.values()} == {f"{number} 4" for number in range(12)}
    assert len((tmp_path / "decisions.jsonl").read_bytes().splitlines()) == 60


def test_a_person_with_a_keyboard_and_hostile_captions(world, serve, tmp_path):
    texts = [HOSTILE[number % len(HOSTILE)] for number in range(18)]
    texts[4] = {"text": "", "status": "refusal", "detail": HOSTILE[1]}
    dense = world.captions(
        "dense", [*texts, *(["x"] * 2)], layer=HOSTILE[0], provenance=lambda _: {"served_model": HOSTILE[2]}
    )
    before = (tmp_path / "dense" / "captions.parquet").read_bytes()
    server = serve(dense)
    states = {}
    browser = Browser(tmp_path / "profile")
    try:
        browser.size(1200, 800)
        browser.open(server.url)

        def ready():
            browser.wait("document.querySelector('main').getAttribute('aria-busy') === 'false'")

        ready()
        # The token is out of sight, a reload finds it, and no cookie holds it.
        assert browser.see("location.href") == f"{server.origin}/"
        browser.reload()
        ready()
        assert browser.see("document.cookie") == ""
        shown = []
        count = server.session.overview()["states"].__len__()
        for number in range(count):
            assert browser.see("document.getElementById('place').textContent") == f"{number + 1} of {count}"
            shown.append(browser.see("document.getElementById('text').textContent"))
            assert browser.see("document.getElementById('picture').naturalWidth") == 64
            name = browser.see("document.getElementById('name').textContent")
            assert name in {row["name"] for row in rows_by_number(world)}
            key = {0: "a", 1: "e", 2: "r"}[number % 3]
            browser.press(key)
            if key == "e":
                browser.wait("!document.getElementById('editor').hidden")
                browser.see("document.getElementById('edited').select()")
                browser.type(f"{HOSTILE[0]} {number}")
                browser.press("Enter", control=True)
            states[number] = key
            browser.wait(f"document.getElementById('count').textContent === '{number + 1} of {count} decided'")
            ready()
        spoken = [text for text in (*texts, "x", "x") if isinstance(text, str)]
        assert shown == spoken
        assert "Everything is decided" in browser.see("document.getElementById('state').textContent")
        # Back, undo, leave an edit, and say so again.
        browser.press("u")
        browser.wait(f"document.getElementById('count').textContent === '{count - 1} of {count} decided'")
        ready()
        browser.press("e")
        browser.press("Escape")
        assert browser.see("document.getElementById('editor').hidden")
        browser.press("a")
        browser.wait(f"document.getElementById('count').textContent === '{count} of {count} decided'")
        ready()
        browser.press("k")
        ready()
        browser.press("ArrowRight")
        ready()
        browser.settle()
        assert browser.see("document.title") == "Review captions"
        assert browser.see("document.scripts.length") == 1
        assert browser.see("document.querySelectorAll('iframe, a, form, meta[http-equiv]').length") == 0
        assert browser.see("document.documentElement.scrollWidth <= innerWidth")
        assert browser.complaints == []
        assert browser.dialogs == []
        assert {url for url in browser.asked if not url.startswith((f"{server.origin}/", "blob:"))} == set()
        # Trusted types hold even against our own script, were it ever careless.
        careless = "(() => { try { document.body.innerHTML = '<p>'; return 'set' } catch { return 'refused' } })()"
        assert browser.see(careless) == "refused"
    finally:
        browser.close()
    counts = Counter()
    rows = list(
        reviewed_rows(
            dense,
            read_decisions(tmp_path / "decisions.jsonl"),
            reviewed=HOSTILE[0],
            layer="reviewed",
            undecided="drop",
            counts=counts,
        )
    )
    assert len(rows) == count
    edited = [row.text for row in rows if row.provenance["review"] == "edit"]
    assert edited == [f"{HOSTILE[0]} {number}" for number, key in states.items() if key == "e" and number != count - 1]
    assert (tmp_path / "dense" / "captions.parquet").read_bytes() == before


def rows_by_number(world):
    return [{"name": f"{HOSTILE[number % len(HOSTILE)]} {number}"} for number in range(20)]


def test_without_the_token_the_page_says_what_to_do(world, serve, tmp_path):
    server = serve(world.captions("dense", ["a secret"]))
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(f"{server.origin}/")
        browser.wait("!document.getElementById('message').hidden")
        assert "the token of this run" in browser.see("document.getElementById('message').textContent")
        assert "secret" not in browser.see("document.documentElement.outerHTML")
    finally:
        browser.close()


def test_the_log_keeps_what_counts(tmp_path):
    log = DecisionLog(tmp_path / "deep" / "d.jsonl", "kim")
    log.decide(key="a", layer="l", action="accept", text="", seen="x")
    log.decide(key="a", layer="l", action="edit", text="better\u2028\n", seen="x")
    log.decide(key="b", layer="l", action="reject", text="ignored", seen="y")
    log.decide(key="c", layer="l", action="accept", text="", seen="z")
    log.decide(key="c", layer="l", action="undo", text="", seen="z")
    log.decide(key="a", layer="other", action="reject", text="", seen="w")
    log.close()
    decisions = read_decisions(tmp_path / "deep" / "d.jsonl")
    assert decisions == log.decisions
    assert {place: decision.action for place, decision in decisions.items()} == {
        ("a", "l"): "edit", ("b", "l"): "reject", ("a", "other"): "reject"
    }  # fmt: skip
    assert decisions["a", "l"].text == "better\u2028\n"
    assert decisions["a", "l"].caption_sha256 == caption_sha256("x")
    assert decisions["b", "l"].text == ""
    assert read_decisions(tmp_path / "none.jsonl") == {}


def test_a_torn_last_line_is_forgotten_and_others_are_errors(tmp_path):
    path = tmp_path / "d.jsonl"
    log = DecisionLog(path)
    for key in "abc":
        log.decide(key=key, layer="l", action="accept", text="", seen="x")
    log.close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(whole) - len(lines[-1]), len(whole)):
        path.write_bytes(whole[:cut])
        assert len(read_decisions(path)) == 2
    again = DecisionLog(path)
    again.decide(key="d", layer="l", action="reject", text="", seen="x")
    again.close()
    assert [key for key, _ in read_decisions(path)] == ["a", "b", "d"]
    for damaged in (b"nonsense\n", b"[]\n", b'{"key": 1}\n', lines[0].replace(b'"accept"', b'"eat"'), b"\xff\n", b"\n"):
        path.write_bytes(lines[0] + damaged + lines[1])
        with pytest.raises(ArtifactError, match=r"d\.jsonl:2 is no decision"):
            read_decisions(path)
        with pytest.raises(ArtifactError):
            DecisionLog(path)


def test_one_review_at_a_time_writes_a_file(tmp_path):
    log = DecisionLog(tmp_path / "d.jsonl")
    with pytest.raises(ConfigError, match="another review writes to"):
        DecisionLog(tmp_path / "d.jsonl")
    log.close()
    DecisionLog(tmp_path / "d.jsonl").close()


def test_the_layer_is_new_and_the_old_one_untouched(world, tmp_path):
    dense = world.captions("dense", ["a", "b", "c", "d", {"text": "", "status": "refusal", "detail": "no"}])
    before = {path: path.read_bytes() for path in (tmp_path / "dense").iterdir()}
    log = DecisionLog(tmp_path / "d.jsonl", "kim")
    keys = world.keys
    log.decide(key=keys[0], layer="dense", action="accept", text="", seen="a")
    log.decide(key=keys[1], layer="dense", action="edit", text="better", seen="b")
    log.decide(key=keys[2], layer="dense", action="reject", text="", seen="c")
    log.decide(key=keys[3], layer="dense", action="reject", text="", seen="what it said last week")
    log.decide(key=keys[4], layer="dense", action="edit", text="by hand", seen="")
    log.close()
    stats = publish_layer(
        str(tmp_path / "out"), dense, log.decisions, reviewed="dense", layer="reviewed", undecided="keep"
    )
    assert stats == {"accept": 1, "edit": 2, "reject": 1, "undecided": 1, "stale": 1}
    made = load_artifact(str(tmp_path / "out"))
    rows = read_captions(made, layers=["reviewed"])
    assert [(row.text, row.status) for row in rows] == [
        ("a", "ok"), ("better", "ok"), ("", "rejected"), ("d", "ok"), ("by hand", "ok")
    ]  # fmt: skip
    assert [row.provenance["review"] for row in rows] == ["accept", "edit", "reject", "none", "edit"]
    assert rows[1].provenance["reviewer"] == "kim"
    assert rows[1].provenance["captioner"] == "scene-graph"
    assert made.parent("images").hash == world.stored.hash
    assert {path: path.read_bytes() for path in (tmp_path / "dense").iterdir()} == before
    # Again in place; but never over anything else.
    publish_layer(str(tmp_path / "out"), dense, {}, reviewed="dense", layer="reviewed", undecided="drop")
    assert read_captions(load_artifact(str(tmp_path / "out"))) == []
    for folder in ("dense", "images"):
        with pytest.raises(ConfigError, match="is not empty and no layer of a review"):
            publish_layer(str(tmp_path / folder), dense, {}, reviewed="dense", layer="x", undecided="keep")
    assert {path: path.read_bytes() for path in (tmp_path / "dense").iterdir()} == before


def test_a_caption_made_anew_is_undecided_again(world, serve, tmp_path):
    log = DecisionLog(tmp_path / "decisions.jsonl")
    for key, action, seen in zip(world.keys, ("accept", "edit", "reject"), ("a", "last week", "c"), strict=False):
        log.decide(key=key, layer="dense", action=action, text="better", seen=seen)
    log.close()
    server = serve(world.captions("dense", ["a", "b", "c"]))
    assert json.loads(ask(server, "/api/overview")[2])["states"] == ["accept", "", "reject"]
    item = json.loads(ask(server, "/api/items/1")[2])
    assert (item["text"], item["action"], item["edited"]) == ("b", "", "")


def test_what_is_picked(world):
    texts = [f"word{number} " * (number + 1) for number in range(15)]
    texts[3] = "one two three four five six seven eight"
    texts[9] = {"text": "", "status": "refusal", "detail": "no"}
    dense = world.captions("dense", texts)
    number_of = {key: number for number, key in enumerate(world.keys)}

    def picked(pick, count=3, seed=0):
        return [number_of[sample.key] for sample in pick_samples(dense, "dense", pick=pick, count=count, seed=seed)]

    assert picked("stored", 4) == [0, 1, 2, 3]
    assert picked("shortest", 2) == [0, 1]
    assert picked("longest", 2) == [14, 13]
    assert picked("failed") == [9]
    assert picked("repetitive", 2)[0] == 14
    assert picked("random") == picked("random") != picked("random", seed=1)
    assert sorted(picked("random", 100)) == [number for number in range(15) if number != 9]
    with pytest.raises(ConfigError, match="no failures in the layer 'brief'"):
        pick_samples(world.captions("brief", ["a"]), "brief", pick="failed", count=3, seed=0)


def test_which_layer(world):
    dense = world.captions("dense", ["a"])
    assert only_layer(dense, None) == "dense"
    with pytest.raises(ConfigError, match="no caption layer 'brief' \\(it has: dense\\)"):
        only_layer(dense, "brief")

    def two(output):
        from lens_core.storage.captions import write_captions

        write_captions(output, [CaptionRow(key=world.keys[0], layer=layer, text="x") for layer in ("a", "b")])

    both = world.publish("captions", "both", two, [world.stored])
    with pytest.raises(ConfigError, match="has the caption layers a, b: say which"):
        only_layer(both, None)
    assert only_layer(both, "b") == "b"


def test_the_stage_runs_again_when_somebody_decided(tmp_path, lens_registry):
    decisions = tmp_path / "reviews" / "dense.jsonl"
    stages = [
        {"name": "images", "type": "ingest", "source": {"type": "scenes", "count": 6}},
        {
            "name": "dense",
            "type": "caption",
            "source": "images",
            "captioner": {"type": "scene-graph", "style": "dense"},
        },
        {"name": "reviewed", "type": "caption-review", "source": "dense", "decisions": "reviews/dense.jsonl"},
        {"name": "out", "type": "export", "source": ["reviewed", "dense"], "layers": ["reviewed"], "format": "parquet"},
    ]
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "stages": stages}))

    def run():
        said = io.StringIO()
        made = run_pipeline(load_pipeline(str(file), lens_registry), lens_registry, progress=Progress(stream=said))
        return made, said.getvalue()

    made, said = run()
    assert "no decisions yet; make some with: lens caption review" in said
    assert made["reviewed"].stats == {"accept": 0, "edit": 0, "reject": 0, "undecided": 6, "stale": 0}
    assert made["out"].stats["images"] == 6
    assert run()[1].count("done already") == 4
    rows = read_captions(made["dense"])
    log = DecisionLog(decisions)
    log.decide(key=rows[0].key, layer="dense", action="reject", text="", seen=rows[0].text)
    log.close()
    made, said = run()
    assert said.count("done already") == 2
    assert made["out"].stats["images"] == 5
    assert read_captions(made["reviewed"])[0].status == "rejected"


def start_review(folder, *options):
    process = subprocess.Popen(
        [LENS, "caption", "review", "dense", "--no-open", "--reviewer", "kim", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for line in process.stdout:
        if found := re.match(r"open http://127\.0\.0\.1:(\d+)/#(\S+)", line):
            break
    else:
        raise AssertionError(process.communicate()[1])

    class Server:
        server_port, token = int(found[1]), found[2]

    return process, Server


def test_the_command_keeps_decisions_through_a_kill_and_publishes_at_the_end(world, tmp_path):
    world.captions("dense", [f"caption {number}" for number in range(20)])
    process, server = start_review(tmp_path, "--pick", "stored")
    for number in range(7):
        assert ask(server, f"/api/items/{number}/decision", {"action": "accept"})[0] == 200
    second = subprocess.run(
        [LENS, "caption", "review", "dense", "--no-open"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert second.returncode == 2
    assert "another review writes to" in second.stderr
    process.kill()
    process.communicate()
    process, server = start_review(tmp_path, "--pick", "stored", "--publish", "out")
    overview = json.loads(ask(server, "/api/overview")[2])
    assert overview["states"] == ["accept"] * 7 + [""] * 13
    assert ask(server, "/api/items/19/decision", {"action": "edit", "text": "by kim"})[0] == 200
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert "decided: 7 accept, 1 edit, 0 reject" in said
    rows = read_captions(load_artifact(str(tmp_path / "out")), layers=["dense-reviewed"])
    assert [row.text for row in rows] == [*(f"caption {number}" for number in range(19)), "by kim"]
    assert Counter(row.provenance["review"] for row in rows) == {"accept": 7, "none": 12, "edit": 1}
