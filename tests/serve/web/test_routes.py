"""The files of the page: their types, their policy, and that there is nothing inline in them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import lens_serve.web
from lens_serve.web.routes import POLICY

PAGE = Path(lens_serve.web.__file__).with_name("page")
FILES = sorted(path.name for path in PAGE.iterdir())
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@pytest.mark.parametrize("path", ["/", *(f"/static/{name}" for name in FILES)])
def test_every_file_has_its_type_and_the_policy(live, path):
    with live.http() as client:
        told = client.get(path)
        head = client.head(path)
        again = client.get(path, headers={"if-none-match": told.headers["etag"]})
    assert told.status_code == head.status_code == 200
    assert told.headers["content-type"] == TYPES[Path(path).suffix or ".html"]
    for answer in (told, head, again):
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert told.content == (PAGE / (Path(path).name or "index.html")).read_bytes()
    assert head.content == again.content == b""
    assert again.status_code == 304


def test_a_changed_file_is_sent_again(live):
    with live.http() as client:
        assert client.get("/static/app.js", headers={"if-none-match": '"of before"'}).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "routes.py",
        "__init__.py",
        "app",
        "nothing.js",
        "..%2froutes.py",
        "..%2f..%2fplugin.py",
        ".html",
        "%00.js",
        "%2e%2e",
    ],
)
def test_nothing_else_is_served(live, name):
    with live.http() as client:
        assert client.get(f"/static/{name}").status_code == 404


def test_the_policy_lets_nothing_in():
    policy = dict(part.split(" ", 1) for part in POLICY.split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == "'none'"
    assert "unsafe" not in POLICY
    assert "*" not in POLICY


class Parts(HTMLParser):
    """What a page refers to, and what is inline in it."""

    def __init__(self):
        super().__init__()
        self.refers, self.inline, self.ids, self.labels, self._inside = [], [], [], [], None

    def handle_starttag(self, tag, attributes):
        self._inside = tag
        for name, value in attributes:
            if name in ("src", "href"):
                self.refers.append(value)
            elif name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")
            elif name == "id":
                self.ids.append(value)
            elif name in ("for", "aria-describedby", "aria-labelledby"):
                self.labels += value.split()

    def handle_data(self, data):
        if self._inside in ("script", "style") and data.strip():
            self.inline.append(data)


def test_the_page_has_nothing_inline_and_refers_to_its_own_files_only():
    parts = Parts()
    parts.feed((PAGE / "index.html").read_text())
    assert not parts.inline
    assert {*parts.refers} <= {f"static/{name}" for name in FILES}
    assert len(parts.ids) == len({*parts.ids})
    assert {*parts.labels} <= {*parts.ids}


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_scripts_make_no_markup_and_import_their_own_files_only(name):
    script = (PAGE / name).read_text()
    assert not re.search(r"\w*(innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function)", script)
    assert {*re.findall(r'from "(.*?)"', script)} <= {f"./{file}" for file in FILES}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", script)
    assert {*re.findall(r'\bat\("([^"]+)"\)', script)} <= set(
        re.findall(r'id="([^"]+)"', (PAGE / "index.html").read_text())
    )


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(scheme):
    """By WCAG 2.2: 4.5 to 1 for texts, 3 to 1 for the edges of fields."""
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", (PAGE / "style.css").read_text().split("@media")[scheme]))
    pairs = [(text, back, 4.5) for text in ("ink", "soft", "act", "mark") for back in ("paper", "card")]
    pairs += [
        ("on-act", "act", 4.5),
        ("on-act", "act-over", 4.5),
        ("ink", "mark-paper", 4.5),
        ("soft", "mark-paper", 4.5),
    ]
    pairs += [("ink", "hollow", 4.5), ("soft", "hollow", 4.5), ("edge", "card", 3), ("act", "hollow", 3)]
    for text, back, least in pairs:
        light, dark = sorted((luminance(colours[text]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, f"{text} on {back}"
