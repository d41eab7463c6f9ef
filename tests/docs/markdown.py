"""The Markdown pages of the repository, and what stands in them: code blocks, links, headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page that a reader may open."""
    folders = [ROOT / "docs", ROOT / "examples", ROOT / "packages"]
    found = [page for folder in folders for page in folder.rglob("*.md") if "runs" not in page.parts]
    return sorted([*ROOT.glob("*.md"), *found])


def text_of(page: Path) -> str:
    """The page with its snippets put in."""
    return _SNIPPET.sub(lambda match: (ROOT / match[1]).read_text().rstrip(), page.read_text())


def blocks(*languages: str) -> list[Block]:
    """Every block in these languages; a page that is included by another counts once."""
    found = []
    for page in pages():
        text = text_of(page) if page.read_text().count("--8<--") != len(page.read_text().splitlines()) else ""
        for match in _FENCE.finditer(text):
            if match[1] in languages:
                found.append(Block(page, text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


def links(page: Path) -> list[str]:
    """Targets of the page's links and pictures, code left aside."""
    return _LINK.findall(re.sub(r"`[^`]*`", "", _FENCE.sub("", page.read_text())))


def headings(page: Path) -> list[str]:
    """The page's headings, code left aside."""
    return re.findall(r"^#+ (.+)$", _FENCE.sub("", text_of(page)), re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that mkdocs gives a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
