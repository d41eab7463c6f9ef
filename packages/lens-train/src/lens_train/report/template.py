"""Pages of one HTML file that loads nothing, and trusts none of the texts it shows.

Captions, prompts, file names and settings are somebody's words: templates escape everything, and the content security
policy allows inlined images and the page's own style sheet (by its hash) and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import jinja2

__all__ = ["render"]


def render(template: str, *, title: str, **values: Any) -> str:
    """A page.

    Args:
        template: file among this package's templates.
        title: of the page.
        values: what the template shows.
    """
    style = (resources.files(__package__) / "templates" / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lens_train.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.0f}"
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment.get_template(template).render(title=title, style=style, style_hash=digest, **values)
