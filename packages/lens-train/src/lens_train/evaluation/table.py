"""Scores as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["print_scores"]


def print_scores(scores: Mapping[str, Any], *, suite: str, output: str) -> None:
    """Print a table: a row for each skill and mean, for each prompt style a column with the share and its interval.

    Args:
        scores: what `measure` returned, of one model.
        suite: what was asked.
        output: where the files are.
    """
    console = Console(highlight=False, markup=False, emoji=False, width=None if Console().is_terminal else 160)
    (model,) = scores["models"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("skill", no_wrap=True)
    for style in scores["styles"]:
        own = " (its captions' style)" if style == model["own_style"] else ""
        table.add_column(f"{style}{own}", justify="right", no_wrap=True)
        table.add_column("n", justify="right", no_wrap=True)
    rows = [
        (skill, [_of(scores["cells"], style, "skill", skill) for style in scores["styles"]])
        for skill in scores["skills"]
    ]
    rows += [
        (f"mean over {what}", [_of(scores["means"], style, "over", what) for style in scores["styles"]])
        for what in ("skills", "prompts")
    ]
    for name, entries in rows:
        table.add_row(name, *(text for entry in entries for text in _cell(entry)))
    by = scores["rewriter"]
    changed = f", of which {by['type']} rewrote {sum(scores['rewritten'].values()):,} texts" if by else ""
    console.print(f"{model['name']}: {suite}{changed}", soft_wrap=True)
    console.print(table, soft_wrap=True)
    console.print(
        "in brackets: 95 % over prompts, for this one model; training it again would add to that", soft_wrap=True
    )
    console.print(f"scores, answers and sheets: {output}", soft_wrap=True)


def _of(entries: list[dict[str, Any]], style: str, key: str, value: str) -> dict[str, Any] | None:
    return next((entry for entry in entries if entry["style"] == style and entry[key] == value), None)


def _cell(entry: dict[str, Any] | None) -> tuple[str, str]:
    if entry is None:
        return "-", "-"
    share, low, high = (100 * entry[name] for name in ("accuracy", "low", "high"))
    return f"{share:.1f} % [{low:.1f}-{high:.1f}]", f"{entry['n']:,}"
