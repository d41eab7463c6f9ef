"""A picture copied as a command and as a program: both draw it again."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys

import pytest
from PIL import Image

PROMPT = """it's "a $HOME `boat`"\nwith \\n, 50 % & 🛶 {x}"""


def expect(locator):
    from playwright.sync_api import expect

    return expect(locator)


@pytest.fixture
def window(live, open_window):
    made = open_window(live.url)
    made.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    made.settings(seed=2**53 - 1, negative="no 'fog'")
    made.page.get_by_label("2 pictures").check()
    made.drawn(PROMPT, 2)
    made.button("Picture 2").click()
    return made


def copied(window, what):
    window.button(f"Copy as {what}").click()
    expect(window.status).to_have_text(f"Copied as {what}.")
    return window.page.evaluate("navigator.clipboard.readText()")


def pixels(window):
    return window.page.locator("#entries dt:text-is('pixel sha256') + dd").text_content()


def test_the_command_draws_the_same_pictures(live, window):
    command, url, *options = shlex.split(copied(window, "curl").replace("\\\n", " "))
    assert (command, url) == ("curl", f"{live.url}/v1/images/generations")
    assert options[:3] == ["-H", "Content-Type: application/json", "-d"]
    with live.http() as client:
        answer = client.post(url, content=options[3], headers={"content-type": "application/json"}).json()
    assert json.loads(options[3])["prompt"] == PROMPT
    assert answer["lens"]["images"][1]["pixel_sha256"] == pixels(window)


def test_the_program_draws_the_same_pictures(window, tmp_path):
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    subprocess.run(
        [sys.executable, "-c", copied(window, "Python")], cwd=tmp_path, env=environment, check=True, timeout=120
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture-0.png", "picture-1.png"]
    with Image.open(tmp_path / "picture-1.png") as picture:
        assert hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest() == pixels(window)


def test_where_nothing_may_be_copied_it_can_be_by_hand(live, open_window):
    window = open_window("about:blank")
    window.page.context.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined });")
    window.page.goto(live.url)
    window.drawn("a boat")
    window.button("Copy as curl").click()
    by_hand = window.page.get_by_label("This browser copies only by hand")
    expect(by_hand).to_be_focused()
    assert by_hand.input_value().startswith("curl http")
    assert window.page.evaluate("getSelection().toString()") == by_hand.input_value()
