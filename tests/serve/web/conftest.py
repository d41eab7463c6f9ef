"""The page in a real Chromium, against a real server."""

from __future__ import annotations

import pytest

from serve.web.windows import chromium, window


@pytest.fixture(scope="module")
def browser():
    """Of a module only: while Playwright runs, nobody else in this thread can use asyncio."""
    with chromium() as running:
        yield running


@pytest.fixture
def open_window(browser):
    """A new window of a browser that was never used: `open_window(url)`. It must not complain until the end."""
    contexts = []

    def open_(url, *, expected=(), **options):
        context = browser.new_context(**options)
        contexts.append(context)
        opened = window(context, url)
        complaints.append((opened, expected))
        return opened

    complaints = []
    yield open_
    for opened, expected in complaints:
        unexpected = [each for each in opened.complaints if not any(word in each for word in expected)]
        assert not unexpected
    for context in contexts:
        context.close()
