"""When the server is busy, wants a key, refuses or is gone: said in plain words, with a way on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from functools import partial

import pytest

from lens_serve.admission import keys
from lens_serve.engine.engines import Engines
from serve.live import SLOW_BOUNDS, live_server, settings_for, wait_until

REFUSED = ["Failed to load resource"]  # Chromium's word for any status from 400 up


def expect(locator):
    from playwright.sync_api import expect

    return expect(locator)


@pytest.fixture(scope="module")
def narrow(tiny_folder):
    """A server that takes one long drawing and little besides, and does not draw everything."""
    admission = {"max_backlog_s": 0.001, "max_wait_factor": 1.001, "ticket_s": 60.0}
    safety = [{"type": "block-list", "words": ["forbidden"]}]
    settings = settings_for(tiny_folder, bounds=SLOW_BOUNDS, admission=admission, safety=safety)
    with live_server(settings) as server:
        yield server


@contextlib.contextmanager
def busy(live):
    """While somebody else has something long drawn; call what it gives to end that early."""
    lens = {"steps": live.steps_for(20.0, side=192)}  # less than the minute for which places are promised
    asked = {"prompt": "a long story", "stream": True, "size": "192x192", "lens": lens}
    with live.http() as client, contextlib.ExitStack() as drawing:

        def begin():
            """Let in as soon as nothing is left of what was drawn before, nor of what was promised for this moment."""
            answer = drawing.enter_context(client.stream("POST", "/v1/images/generations", json=asked))
            return answer.status_code == 200

        def end():
            drawing.close()
            wait_until(lambda: live.rests, "the engine to be free")

        wait_until(begin, "the other drawing")
        wait_until(lambda: live.jobs == 1, "its job")
        try:
            yield end
        finally:
            end()


def drawings(window):
    """The requests for drawings that a window sends from now on."""
    sent = []
    window.page.on("request", lambda request: request.method == "POST" and sent.append(request))
    return sent


def test_a_busy_server_is_counted_down_to_and_tried_again(narrow, open_window):
    window = open_window(narrow.url, expected=REFUSED)
    sent = drawings(window)
    window.settings(steps=3)
    window.page.clock.install()
    with busy(narrow) as end:
        window.draw("a boat")
        expect(window.page.get_by_role("alert").filter(has_text="The server is busy just now.")).to_be_visible()
        expect(window.page.get_by_role("timer")).to_contain_text(" s")
        expect(window.button("Draw")).to_be_visible()
        end()
        window.page.clock.fast_forward("10:00:00")
        expect(window.status).to_have_text("The picture is done.")
    expect(window.page.locator("#trouble")).to_be_hidden()
    assert "x-lens-ticket" not in sent[0].headers
    assert sent[-1].headers["x-lens-ticket"]


def test_it_is_not_tried_again_by_itself_against_ones_will(narrow, open_window):
    window = open_window(narrow.url, expected=REFUSED)
    sent = drawings(window)
    window.settings(steps=3)
    window.page.clock.install()
    with busy(narrow):
        window.draw("a boat")
        window.page.get_by_label("Try again by itself").uncheck()
        window.page.clock.fast_forward("10:00:00")
        expect(window.page.get_by_role("timer")).to_have_text("0 s")
        assert len(sent) == 1
    window.button("Try now").click()
    expect(window.status).to_have_text("The picture is done.")
    assert len(sent) == 2


def test_dismissing_ends_the_waiting(narrow, open_window):
    window = open_window(narrow.url, expected=REFUSED)
    sent = drawings(window)
    window.settings(steps=3)
    window.page.clock.install()
    with busy(narrow):
        window.draw("a boat")
        window.button("Dismiss").click()
        expect(window.page.locator("#trouble")).to_be_hidden()
        expect(window.button("Draw")).to_be_focused()
        window.page.clock.fast_forward("10:00:00")
        assert len(sent) == 1


@pytest.fixture(scope="module")
def locked(tiny_folder, tmp_path_factory):
    """A server with keys, and their file."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.add(file, "somebody else")
    listen = {"port": 0, "metrics_port": None, "keys": str(file)}
    with live_server(settings_for(tiny_folder, listen=listen)) as server:
        yield server, file


def test_the_key_is_asked_for_kept_in_the_tab_only_and_forgotten(locked, open_window):
    server, file = locked
    key, _ = keys.add(file, "kim", images_per_day=2)
    window = open_window(server.url, expected=REFUSED)
    field = window.page.get_by_label("API key")
    expect(field).to_be_focused()
    expect(window.page.locator("#form")).to_be_hidden()
    for wrong, said in (("lens-" + "a" * 52, "The API key is not known."), ("clé 🔑", "plain letters")):
        field.fill(wrong)
        window.page.keyboard.press("Enter")
        expect(window.page.locator("#key-problem")).to_contain_text(said)
        expect(field).to_have_value("")
    field.fill(f" {key} ")
    window.page.keyboard.press("Enter")
    window.drawn("a boat")
    stored = "() => JSON.stringify([{...localStorage}, document.cookie, location.href])"
    assert key not in window.page.evaluate(stored)
    assert key not in window.page.content()
    window.page.reload()
    window.drawn("a car")

    window.draw("one too many")
    expect(window.page.locator("#trouble-title")).to_have_text("Your key has drawn what it may for now.")
    expect(window.page.get_by_role("timer")).to_be_hidden()
    expect(window.button("Try now")).to_be_hidden()

    from serve.web.windows import window as another

    other = another(window.page.context, server.url)
    expect(other.page.get_by_label("API key")).to_be_focused()

    window.button("Forget key").click()
    expect(field).to_be_visible()
    assert key not in json.dumps(window.page.evaluate("() => ({...sessionStorage})"))


def test_a_key_that_is_revoked_meanwhile_is_asked_for_anew_and_the_form_stays(locked, open_window):
    server, file = locked
    key, record = keys.add(file, "kim")
    window = open_window(server.url, expected=REFUSED)
    window.page.get_by_label("API key").fill(key)
    window.page.keyboard.press("Enter")
    expect(window.prompt).to_be_visible()
    keys.revoke(file, record.id)
    window.draw("a boat in the fog")
    expect(window.page.locator("#key-problem")).to_have_text("The API key was revoked.")
    fresh, _ = keys.add(file, "kim again")
    window.page.get_by_label("API key").fill(fresh)
    window.page.keyboard.press("Enter")
    expect(window.prompt).to_have_value("a boat in the fog")
    window.button("Draw").click()
    expect(window.status).to_have_text("The picture is done.")


def test_what_is_not_drawn_here_is_said(narrow, open_window):
    window = open_window(narrow.url, expected=REFUSED)
    window.draw("a forbidden boat")
    expect(window.page.locator("#trouble-title")).to_have_text("The server declined to draw this.")
    expect(window.button("Try now")).to_be_hidden()
    window.drawn("a boat")
    expect(window.page.locator("#trouble")).to_be_hidden()


def test_an_error_on_the_way_is_said(narrow, open_window):
    window = open_window(narrow.url, expected=REFUSED)
    window.draw_something_endless()
    pids = set()
    for _ in range(2):  # a job is begun anew once
        wait_until(lambda: narrow.jobs == 1 and narrow.pid not in {*pids, None}, "the job")
        pids.add(pid := narrow.pid)
        os.kill(pid, signal.SIGKILL)
    expect(window.page.locator("#trouble-title")).to_have_text("Something went wrong on the server.")
    expect(window.page.locator("#trouble-detail")).to_contain_text("lost twice")
    wait_until(lambda: narrow.server.engines.is_ready and narrow.rests, "a new engine")
    window.button("Try now").click()
    expect(window.status).to_have_text("Drawing.")
    window.button("Cancel").click()
    wait_until(lambda: narrow.rests, "the engine to be free")


def test_a_server_that_is_gone_is_said_to_be(tiny_folder, open_window):
    with live_server(settings_for(tiny_folder)) as server:
        window = open_window(server.url, expected=REFUSED)
        expect(window.button("Draw")).to_be_visible()
    window.draw("a boat")
    expect(window.page.locator("#trouble-title")).to_have_text("The server does not answer. Is it still running?")
    expect(window.button("Try now")).to_be_visible()


LATE = """while ! test -e "$0"; do sleep 0.05; done; exec "$@" """


def test_the_page_waits_while_the_model_loads(tiny_folder, open_window, monkeypatch, tmp_path):
    may_load = tmp_path / "may-load"
    command = ("/bin/sh", "-c", LATE, str(may_load), sys.executable, "-m", "lens_serve.engine")
    monkeypatch.setattr("lens_serve.server.Engines", partial(Engines, command=command))
    monkeypatch.setattr("serve.live.wait_until", lambda condition, what: None)
    with live_server(settings_for(tiny_folder)) as server:
        window = open_window(server.url, expected=REFUSED)
        expect(window.page.locator("#waiting")).to_have_text(
            "The server is loading its model. The page goes on by itself."
        )
        expect(window.page.locator("#form")).to_be_hidden()
        may_load.touch()
        window.drawn("a boat")
        expect(window.page.locator("#waiting")).to_be_hidden()
