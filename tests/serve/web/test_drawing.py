"""Drawing from the page: what is shown on the way and after, and that giving up frees the server."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from PIL import Image

from serve.live import SLOW_BOUNDS, live_server, settings_for, wait_until

HOSTILE = [
    '<img src=x onerror="document.title=1"><script>alert(1)</script>',
    "‮שלום עולם\u202c مرحبا بالعالم",
    "👩‍👩‍👧‍👦 é ẍ̧ \u200b\ufeff`${7*7}` &amp; \\u0041",
    "a" * 4000,
    "ein Wort " * 440,
]


@pytest.fixture(scope="module")
def slow(tiny_folder):
    """A server that takes its time when it is asked for very many steps, and rewrites prompts."""
    rewrite = {"rewriter": "scene-expander"}
    with live_server(settings_for(tiny_folder, bounds=SLOW_BOUNDS, rewrite=rewrite)) as server:
        yield server


def expect(locator):
    from playwright.sync_api import expect

    return expect(locator)


def entry(window, name):
    return window.page.locator(f"#entries dt:text-is('{name}') + dd").text_content()


def test_the_page_opens_quietly_and_asks_this_server_only(live, open_window):
    asked = []
    window = open_window("about:blank")
    window.page.on("request", lambda request: asked.append(request.url))
    window.page.goto(live.url)
    expect(window.button("Draw")).to_be_visible()
    expect(window.page.get_by_text("Model: tiny")).to_be_visible()
    assert all(url.startswith(f"{live.url}/") for url in asked)
    assert len(asked) == len({*asked})
    assert window.page.context.cookies() == []


def test_previews_come_before_the_picture(live, open_window):
    window = open_window(live.url)
    window.page.evaluate("""() => {
      window.seen = [];
      new MutationObserver(() => {
        const frame = document.querySelector(".frame");
        if (frame && seen.at(-1) !== frame.className) seen.push(frame.className);
      }).observe(document.querySelector("#frames"), { subtree: true, childList: true, attributes: true });
    }""")
    window.settings(steps=8, seed=7)
    window.drawn("a red circle")
    assert window.page.evaluate("seen") == ["frame empty", "frame rough", "frame"]
    expect(window.picture).to_have_js_property("naturalWidth", 16)
    expect(window.picture).to_have_attribute("alt", "a red circle")
    expect(window.page.locator("#shown-prompt")).to_have_text("a red circle")
    expect(window.page.locator("#facts")).to_contain_text("16 × 16 · 8 steps · seed 7 ·")
    expect(window.button("Cancel")).to_be_hidden()


def test_the_download_is_the_picture_with_its_receipt(live, open_window, tmp_path):
    window = open_window(live.url)
    window.settings(seed=11)
    window.drawn("Ein Kreis: rot & groß?")
    with window.page.expect_download() as caught:
        window.page.get_by_role("link", name="Download PNG").click()
    assert caught.value.suggested_filename == "lens-Ein-Kreis-rot-groß-11-0.png"
    caught.value.save_as(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        receipt = json.loads(picture.text["lens"])
        pixels = hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()
    assert receipt["prompt"] == "Ein Kreis: rot & groß?"
    assert receipt["seed"] == 11
    window.page.get_by_text("Receipt", exact=True).click()
    assert entry(window, "pixel sha256") == receipt["pixel_sha256"] == pixels
    assert entry(window, "seed") == "11"


def test_the_same_seed_again_gives_the_same_picture_and_without_keep_the_next_differs(live, open_window):
    window = open_window(live.url)
    seed = window.page.locator("#seed")
    expect(seed).not_to_have_value("")
    first_seed = seed.input_value()
    window.drawn("a boat")
    first = entry(window, "pixel sha256")
    expect(seed).not_to_have_value(first_seed)
    window.drawn("a boat")
    assert entry(window, "pixel sha256") != first
    window.page.locator("#groups button").last.click()
    window.button("Again with this seed").click()
    expect(window.page.locator("#groups button")).to_have_count(3)
    expect(window.status).to_have_text("The picture is done.")
    assert entry(window, "pixel sha256") == first
    expect(seed).to_have_value(first_seed)
    expect(window.page.locator("#keep")).to_be_checked()


def test_the_dice_throws_a_seed_and_fields_that_are_wrong_say_why(live, open_window):
    window = open_window(live.url)
    window.settings(seed="12 monkeys")
    window.draw("a boat")
    expect(window.page.locator("#seed-problem")).to_contain_text("A whole number")
    expect(window.page.locator("#seed")).to_be_focused()
    window.button("Throw a new seed").click()
    expect(window.page.locator("#seed")).to_have_value(re.compile(r"^\d+$"))
    window.draw("   ")
    expect(window.page.locator("#prompt-problem")).to_have_text("Say what the picture should show.")
    expect(window.prompt).to_be_focused()
    window.draw("b" * 4001)
    expect(window.page.locator("#prompt-problem")).to_have_text("4001 characters; at most 4000 are taken.")
    window.page.get_by_label("Own size").check()
    for side, problem in (("18", "a multiple of 4 from 16 to 64"), ("68", "from 16 to 64")):
        window.page.get_by_label("Width").fill(side)
        window.draw("a boat")
        expect(window.page.locator("#size-problem")).to_contain_text(problem)
    assert window.page.locator("#groups button").count() == 0


def test_several_pictures_stand_side_by_side_and_each_has_its_receipt(live, open_window):
    window = open_window(live.url)
    window.page.get_by_label("3 pictures").check()
    window.drawn("three boats", 3)
    expect(window.picture).to_have_count(3)
    hashes = set()
    for index in range(3):
        window.button(f"Picture {index + 1}").click()
        assert entry(window, "index") == str(index)
        hashes.add(entry(window, "pixel sha256"))
    assert len(hashes) == 3
    expect(window.page.locator("#groups button")).to_have_count(3)


def test_cancel_is_seen_by_the_server_and_the_picture_before_comes_back(slow, open_window):
    window = open_window(slow.url)
    window.drawn("a short story")
    window.draw_something_endless()
    wait_until(lambda: slow.jobs == 1, "the job")
    expect(window.page.locator("#steps-taken")).to_contain_text("of 1000 steps")
    window.button("Cancel").click()
    expect(window.status).to_have_text("Cancelled.")
    wait_until(lambda: slow.jobs == 0, "the engine to be free")
    expect(window.page.locator("#shown-prompt")).to_have_text("a short story")
    expect(window.button("Draw")).to_be_visible()
    expect(window.page.locator("#groups button")).to_have_count(1)


def test_escape_cancels_too(slow, open_window):
    window = open_window(slow.url)
    window.draw_something_endless()
    wait_until(lambda: slow.jobs == 1, "the job")
    window.page.keyboard.press("Escape")
    expect(window.status).to_have_text("Cancelled.")
    wait_until(lambda: slow.jobs == 0, "the engine to be free")
    expect(window.page.get_by_text("Describe a picture")).to_be_visible()


def test_closing_the_window_cancels(slow, open_window):
    window = open_window(slow.url)
    window.draw_something_endless()
    wait_until(lambda: slow.jobs == 1, "the job")
    window.page.close()
    wait_until(lambda: slow.jobs == 0, "the engine to be free")


def test_windows_do_not_disturb_each_other(slow, open_window):
    from serve.web.windows import window as another

    first = open_window(slow.url)
    first.draw_something_endless()
    second = another(first.page.context, slow.url)
    expect(second.button("Draw")).to_be_visible()
    expect(second.prompt).to_have_value("")
    second.settings(steps=3)
    second.drawn("a short story")
    expect(first.page.get_by_role("heading", name="Earlier")).to_be_visible()
    expect(first.button("Cancel")).to_be_visible()
    assert first.prompt.input_value() == "a long story"
    second.page.close()
    assert slow.jobs == 1
    first.button("Cancel").click()
    wait_until(lambda: slow.jobs == 0, "the engine to be free")
    assert not second.complaints


@pytest.mark.parametrize("prompt", HOSTILE, ids=["markup", "right-to-left", "unicode", "one-word", "long"])
def test_prompts_are_shown_as_the_text_they_are(live, open_window, prompt):
    window = open_window(live.url, viewport={"width": 360, "height": 740})
    window.drawn(prompt)
    shown = prompt.strip()
    assert window.page.locator("#shown-prompt").text_content() == shown
    assert entry(window, "prompt") == shown
    assert window.picture.get_attribute("alt") == shown
    assert window.page.title() == "Lens"
    assert window.page.locator("#show script, #show img:not([src^='blob:'])").count() == 0
    assert window.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_markup_cannot_be_put_in(live, open_window):
    window = open_window(live.url, expected=["TrustedHTML", "TrustedScript", "require-trusted-types-for"])
    told = window.page.evaluate("""async () => {
      const violation = new Promise((done) => addEventListener("securitypolicyviolation", done, { once: true }));
      try { document.body.innerHTML = "<b>in</b>"; } catch (error) {
        return [error.name, (await violation).violatedDirective];
      }
    }""")
    assert told == ["TypeError", "require-trusted-types-for"]
    script = "() => { document.body.append(Object.assign(document.createElement('script'), { text: 'ran = 1' })); }"
    with pytest.raises(Exception, match="TrustedScript"):
        window.page.evaluate(script)
    assert window.page.evaluate("typeof ran") == "undefined"


def test_a_rewritten_prompt_is_shown_and_can_be_declined_where_the_server_has_a_rewriter(slow, open_window):
    window = open_window(slow.url)
    window.drawn("a red circle")
    expect(window.page.get_by_text("Drawn from this rewritten prompt:")).to_be_visible()
    rewritten = window.page.locator("#shown-rewritten").text_content()
    assert rewritten != "a red circle"
    assert entry(window, "rewritten prompt") == rewritten
    window.settings()
    expect(window.page.get_by_label("Rewrite the prompt first")).to_be_checked()
    window.page.get_by_label("Rewrite the prompt first").uncheck()
    window.drawn("a red circle")
    expect(window.page.locator("#rewritten")).to_be_hidden()


def test_without_a_rewriter_there_is_no_word_of_rewriting(live, open_window):
    window = open_window(live.url)
    window.settings()
    window.drawn("a red circle")
    expect(window.page.get_by_label("Rewrite the prompt first")).to_be_hidden()
    expect(window.page.locator("#rewritten")).to_be_hidden()
