"""The picture of the page in docs/how-to/use-the-page.md, taken from a real server:

PYTHONPATH=tests python -m serve.web.screenshot runs/quickstart/model-dense docs/assets/serve-page.png
"""

from __future__ import annotations

import sys

from serve.live import live_server
from serve.web.windows import chromium, window

PICTURES = [
    ("a purple circle above a yellow square", 11),
    ("a large yellow triangle and a small blue square", 10),
    ("a red circle", 10),
    ("a green cross", 11),
]


def main(folder: str, file: str) -> None:
    """Draw some pictures, and take the picture of the window."""
    from lens_serve.config import ServeSettings

    plain = {"models": [{"name": "demo", "folder": folder}], "listen": {"port": 0, "metrics_port": None}}
    settings = ServeSettings.model_validate({**plain, "rewrite": {"rewriter": {"type": "scene-expander"}}})
    with live_server(settings) as server, chromium() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 940})
        opened = window(context, server.url)
        opened.settings()
        for prompt, seed in PICTURES:
            opened.page.locator("#seed").fill(str(seed))
            opened.drawn(prompt)
        opened.page.get_by_text("More settings").click()
        opened.prompt.focus()
        opened.page.screenshot(path=file)


if __name__ == "__main__":
    main(*sys.argv[1:])
