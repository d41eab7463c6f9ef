"""Pictures that the browser keeps: over reloads, no more than sixty, and none after they were cleared."""

from __future__ import annotations

import pytest


def expect(locator):
    from playwright.sync_api import expect

    return expect(locator)


def test_history_and_form_survive_a_reload_and_can_be_cleared(live, open_window):
    window = open_window(live.url)
    for prompt in ("a boat", "a car"):
        window.drawn(prompt)
    window.settings(negative="fog")
    window.prompt.fill("half a thou")
    window.page.reload()
    kept = window.page.locator("#groups button")
    expect(kept).to_have_count(2)
    expect(window.prompt).to_have_value("half a thou")
    expect(window.page.locator("#negative")).to_have_value("fog")
    kept.last.click()
    expect(window.page.locator("#shown-prompt")).to_have_text("a boat")
    expect(window.picture).to_have_js_property("naturalWidth", 16)
    expect(kept.last).to_have_attribute("aria-current", "true")

    window.button("Clear…").click()
    dialog = window.page.get_by_role("dialog", name="Remove these 2 pictures from this browser?")
    expect(dialog.get_by_role("button", name="Keep them")).to_be_focused()
    window.page.keyboard.press("Escape")
    expect(kept).to_have_count(2)
    window.button("Clear…").click()
    dialog.get_by_role("button", name="Remove them").click()
    expect(window.page.locator("#gallery")).to_be_hidden()
    expect(window.page.get_by_text("Describe a picture")).to_be_visible()
    window.page.reload()
    expect(window.button("Draw")).to_be_visible()
    expect(window.page.locator("#gallery")).to_be_hidden()


def test_another_window_has_the_history_too_and_a_private_one_has_not(live, open_window):
    from serve.web.windows import window as another

    first = open_window(live.url)
    first.drawn("a boat")
    second = another(first.page.context, live.url)
    expect(second.page.get_by_role("heading", name="Earlier")).to_be_visible()
    expect(second.page.locator("#groups button")).to_have_count(1)
    stranger = open_window(live.url)
    expect(stranger.button("Draw")).to_be_visible()
    expect(stranger.page.locator("#gallery")).to_be_hidden()
    assert not second.complaints


def test_at_most_sixty_are_kept_and_the_oldest_go(live, open_window):
    window = open_window(live.url)
    kept = window.page.evaluate("""async () => {
      const history = await import("/static/history.js");
      for (let number = 0; number < 65; number++) await history.keep({ number });
      return (await history.kept()).map(({ number }) => number);
    }""")
    assert kept == list(range(5, 65))


@pytest.mark.parametrize("broken", ["indexedDB.open = () => { throw new Error('none here'); }"])
def test_a_browser_that_keeps_nothing_says_so(live, open_window, broken):
    window = open_window("about:blank")
    window.page.context.add_init_script(broken)
    window.page.goto(live.url)
    window.drawn("a boat")
    expect(window.page.locator("#groups button")).to_have_count(1)
    expect(window.page.locator("#kept")).to_contain_text("does not keep pictures")
    window.page.locator("#groups button").click()
    expect(window.page.locator("#shown-prompt")).to_have_text("a boat")
