"""The page for everybody: by keyboard alone, read aloud, on a phone, without motion, in the dark."""

from __future__ import annotations

import pytest

CONTROLS = {"button", "checkbox", "combobox", "link", "radio", "slider", "spinbutton", "textbox", "DisclosureTriangle"}

PLACES = [
    ("banner", None),
    ("heading", "Lens"),
    ("main", None),
    ("form", "What to draw"),
    ("group", "Size"),
    ("group", "How many"),
    ("region", "Picture"),
    ("figure", None),
    ("region", "Your pictures"),
]

FOCUSED = """() => {
  const focused = document.activeElement;
  const seen = focused.closest(".chips label") || focused;
  const outline = getComputedStyle(seen).outlineStyle;
  return { id: focused.id || focused.value || focused.textContent.trim(), outline, tag: focused.tagName };
}"""


def expect(locator):
    from playwright.sync_api import expect

    return expect(locator)


def test_everything_can_be_done_by_keyboard(live, open_window):
    window = open_window(live.url)
    keyboard = window.page.keyboard
    expect(window.button("Draw")).to_be_visible()

    def walk_to(name):
        """Press Tab until something has the focus, visibly all the way."""
        walked = []
        while not walked or walked[-1] != name:
            keyboard.press("Tab")
            focused = window.page.evaluate(FOCUSED)
            if focused["tag"] != "BODY":  # the browser's own controls come between
                assert focused["outline"] not in ("none", ""), focused
            walked.append(focused["id"])
            assert len(walked) < 60, walked
        return walked

    assert walk_to("prompt") == ["prompt"]
    keyboard.type("a boat")
    walk_to("16x16")
    walk_to("1")
    keyboard.press("ArrowRight")
    expect(window.page.get_by_label("2 pictures")).to_be_checked()
    keyboard.press("ArrowLeft")
    walk_to("More settings")
    keyboard.press("Enter")
    assert walk_to("tier")[:5] == ["seed", "dice", "keep", "steps", "guidance"]
    walk_to("draw")
    keyboard.press("Enter")
    expect(window.status).to_have_text("The picture is done.")
    expect(window.button("Draw")).to_be_focused()
    walk_to("download")
    with window.page.expect_download():
        keyboard.press("Enter")
    walk_to("Receipt")
    keyboard.press("Enter")
    expect(window.page.locator("#entries")).to_be_visible()
    walk_to("clear")
    keyboard.press("Tab")
    keyboard.press("Enter")
    expect(window.status).to_have_text("The picture is shown.")


def test_control_enter_draws_from_the_prompt_and_not_while_drawing(live, open_window):
    window = open_window(live.url)
    window.prompt.fill("a boat")
    window.prompt.press("Control+Enter")
    expect(window.status).to_have_text("The picture is done.")
    expect(window.prompt).to_be_focused()
    expect(window.prompt).to_have_value("a boat")
    window.prompt.press("Meta+Enter")
    expect(window.page.locator("#groups button")).to_have_count(2)


def test_every_control_has_a_name_and_everything_has_a_place(live, open_window):
    window = open_window(live.url)
    window.settings()
    window.page.get_by_label("2 pictures").check()
    window.page.get_by_label("Own size").check()
    window.drawn("a boat", 2)
    window.page.get_by_text("Receipt", exact=True).click()
    tree = window.page.context.new_cdp_session(window.page).send("Accessibility.getFullAXTree")["nodes"]
    named = {}
    for node in tree:
        role = node.get("role", {}).get("value")
        if not node["ignored"] and role in CONTROLS:
            named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert {*named} == CONTROLS
    assert all(name.strip() for names in named.values() for name in names), named
    for role, name in PLACES:
        located = window.page.get_by_role(role, name=name) if name else window.page.get_by_role(role)
        expect(located.first).to_be_visible()
    assert window.page.locator("img:not([alt])").count() == 0
    assert window.page.locator("html[lang=en]").count() == 1


def test_progress_is_said_and_what_is_wrong_belongs_to_its_field(live, open_window):
    window = open_window(live.url)
    window.page.evaluate("""() => {
      window.said = [];
      const status = document.querySelector("#status");
      new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true });
    }""")
    window.settings(steps=8)
    window.drawn("a boat")
    said = window.page.evaluate("said")
    assert said[0] == "Waiting for its turn."
    assert "Drawing." in said
    assert said[-1] == "The picture is done."
    window.draw("")
    expect(window.prompt).to_have_attribute("aria-invalid", "true")
    expect(window.prompt).to_have_accessible_description("Say what the picture should show.")
    window.drawn("a boat")
    assert window.prompt.get_attribute("aria-invalid") is None


@pytest.mark.parametrize("width", [320, 360, 768, 899, 900, 1280])
def test_nothing_is_wider_than_the_window(live, open_window, width):
    window = open_window(live.url, viewport={"width": width, "height": 740})
    window.settings()
    window.page.get_by_label("4 pictures").check()
    window.page.get_by_label("Own size").check()
    window.drawn("Donaudampfschifffahrtsgesellschaftskapitän" * 8, 4)
    window.page.get_by_text("Receipt", exact=True).click()
    assert window.page.evaluate("document.documentElement.scrollWidth") <= width
    for control in window.page.locator("button:visible, summary:visible, a:visible, select:visible").all():
        box = control.bounding_box()
        assert box["width"] >= 24, control.text_content()
        assert box["height"] >= 24, control.text_content()
    expect(window.button("Draw")).to_be_in_viewport()


@pytest.mark.parametrize(("motion", "moves"), [("reduce", False), ("no-preference", True)])
def test_nothing_moves_for_those_who_do_not_want_it(live, open_window, motion, moves):
    window = open_window(live.url, reduced_motion=motion)
    window.drawn("a boat")
    styles = window.page.evaluate("""() => {
      const frame = document.querySelector(".frame");
      frame.classList.add("empty");
      return [frame, frame.querySelector("img"), document.querySelector("#draw")].map((element) => {
        const style = getComputedStyle(element);
        return [style.animationName !== "none", parseFloat(style.transitionDuration) > 0];
      });
    }""")
    assert any(any(style) for style in styles) is moves


def test_the_dark_is_dark(live, open_window):
    colours = []
    for scheme in ("light", "dark"):
        window = open_window(live.url, color_scheme=scheme)
        expect(window.button("Draw")).to_be_visible()
        colours.append(window.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(250, 249, 246)", "rgb(19, 22, 25)"]
