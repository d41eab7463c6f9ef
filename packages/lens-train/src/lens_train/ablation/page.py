"""The report: sections of texts, tables and figures, as one HTML file, and as Markdown with its pictures beside it.

Both say the same, since both are written from the same sections.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lens_train.report.charts import data_url
from lens_train.report.template import render

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Figure", "Section", "Table", "html_page", "markdown_page"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts; the first column names the row.

    Args:
        caption: what it shows, and how to read it.
        head: names of the columns.
        rows: as long as the head.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture.

    Args:
        file: its name below `figures/`.
        png: the file.
        alt: what it shows, for who does not see it.
        caption: how to read it.
    """

    file: str
    png: bytes
    alt: str
    caption: str = ""

    @property
    def url(self) -> str:
        """The picture itself as a URL."""
        return data_url(self.png, "image/png")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands below it, in this order.

    Args:
        title: the heading.
        text: a paragraph.
        points: a list.
        tables: tables.
        figures: pictures.
    """

    title: str
    text: str = ""
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = field(default=(), repr=False)


def html_page(title: str, sections: Sequence[Section], *, made_by: str) -> str:
    """The report as one HTML file that loads nothing.

    Args:
        title: of the page.
        sections: of the page.
        made_by: for its last line.
    """
    return render("ablation.html.j2", title=title, sections=sections, made_by=made_by)


def markdown_page(title: str, sections: Sequence[Section], *, made_by: str) -> str:
    """The report as Markdown, with pictures in `figures/`.

    Args:
        title: of the page.
        sections: of the page.
        made_by: for its last line.
    """
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        if section.text:
            parts.append(_plain(section.text))
        if section.points:
            parts.append("\n".join(f"- {_plain(point)}" for point in section.points))
        for table in section.tables:
            lines = [_cells(table.head), "|" + "---|" + "---:|" * (len(table.head) - 1), *map(_cells, table.rows)]
            parts += [_plain(table.caption), "\n".join(lines)]
        for figure in section.figures:
            parts.append(f"![{_plain(figure.alt)}](figures/{figure.file})")
            if figure.caption:
                parts.append(_plain(figure.caption))
    parts.append(f"---\n\n{_plain(made_by)}")
    return "\n\n".join(parts) + "\n"


def _cells(texts: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, texts)) + " |"


def _plain(text: str) -> str:
    """A text that Markdown takes for nothing else: names of arms and skills are somebody's words."""
    text = " ".join(text.split()).replace("&", "&amp;")
    for letter in "<>|$~":  # of these, only some readers of Markdown know a backslash
        text = text.replace(letter, f"&#{ord(letter)};")
    return re.sub(r"([\\`*_{}\[\]])", r"\\\1", text)
