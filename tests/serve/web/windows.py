"""A Chromium window as a person uses it, by Playwright; it remembers what the browser complained about."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from serve.live import ENDLESS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Locator, Page

WAIT_MS = 60_000
"""For what happens within a second on an idle machine."""

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Told to the console, so that they are heard even if the page goes away.
VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error("policy violated:", event.violatedDirective, event.blockedURI));
"""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, until the end of the block."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        # A visitor's checkout may lack a browser; our own CI may not.
        lacking = pytest.fail if os.environ.get("CI") else pytest.skip
        lacking("this test opens a page in a browser, and there is none: apt-get install -y chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=2 * WAIT_MS)
        yield browser
        browser.close()


class Window:
    """One window with the page in it.

    `page` is Playwright's; `complaints` are errors, warnings and violations of the policy, as they come.
    """

    def __init__(self, page: Page):
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda told: told.type in ("error", "warning") and self.complaints.append(told.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    @property
    def prompt(self) -> Locator:
        return self.page.get_by_role("textbox", name="Prompt", exact=True)

    @property
    def picture(self) -> Locator:
        """What stands in the frames."""
        return self.page.locator("#frames img")

    @property
    def status(self) -> Locator:
        return self.page.locator("#status")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name)

    def settings(self, **values: object) -> None:
        """Open "More settings" and change some, by id."""
        if self.page.locator("#more").get_attribute("open") is None:
            self.page.get_by_text("More settings").click()
        for name, value in values.items():
            self.page.locator(f"#{name}").fill(str(value))

    def draw(self, prompt: str) -> None:
        """Ask for a picture, and wait for nothing."""
        self.prompt.fill(prompt)
        self.button("Draw").click()

    def draw_something_endless(self) -> None:
        """Ask for what is never done while a test goes on, where `SLOW_BOUNDS` allow it."""
        width, height = ENDLESS["size"].split("x")
        self.settings(steps=ENDLESS["lens"]["steps"])
        self.page.get_by_label("Own size").check()
        self.page.get_by_label("Width").fill(width)
        self.page.get_by_label("Height").fill(height)
        self.draw("a long story")

    def drawn(self, prompt: str, count: int = 1) -> None:
        """Ask for a picture, and wait until it is done."""
        from playwright.sync_api import expect

        self.draw(prompt)
        expect(self.status).to_have_text("The picture is done." if count == 1 else f"{count} pictures are done.")


def window(context: BrowserContext, url: str) -> Window:
    """A new window that shows the page at `url`."""
    context.add_init_script(VIOLATIONS)
    opened = Window(context.new_page())
    opened.page.goto(url)
    return opened
