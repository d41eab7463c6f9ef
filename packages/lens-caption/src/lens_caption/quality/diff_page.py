"""A diff as one HTML page that loads nothing from elsewhere; captions are hostile text until they are escaped."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from lens_caption.quality.diff import word_changes
from lens_core.errors import ImageError
from lens_core.images import decode, to_jpeg

if TYPE_CHECKING:
    from collections.abc import Callable

    from lens_caption.quality.diff import Diff, Pair, Side

__all__ = ["diff_page", "diff_table"]

_THUMBNAIL = 256
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
article { display: grid; grid-template-columns: 16rem 1fr; gap: 1rem; padding: 1rem 0; border-top: 1px solid #8886; }
article img { max-width: 100%; } .text { unicode-bidi: isolate; overflow-wrap: anywhere; }
del { background: #f003; text-decoration: line-through; } ins { background: #0a03; text-decoration: none; }
small { color: #888; }
@media (max-width: 40rem) { article { grid-template-columns: 1fr; } }
"""


def diff_table(diff: Diff, names: tuple[str, str]) -> list[tuple[str, str, str]]:
    """The numbers, row by row: what, in the first layer, in the second."""
    a, b = diff.a, diff.b
    change, low, high = diff.words_change
    rows = [
        ("", *names),
        ("images", f"{a.images:,}", f"{b.images:,}"),
        ("captions", f"{a.captions:,}", f"{b.captions:,}"),
    ]
    for status in dict.fromkeys([*a.by_status, *b.by_status]):
        if status != "ok":
            rows.append((status, _share(a, status), _share(b, status)))
    rows += [
        ("words, mean", f"{a.words_mean:.1f}", f"{b.words_mean:.1f}"),
        ("words, median", f"{a.words_median:g}", f"{b.words_median:g}"),
    ]
    if a.input_tokens or b.input_tokens:
        rows.append(("input tokens", f"{a.input_tokens:,}", f"{b.input_tokens:,}"))
        rows.append(("output tokens", f"{a.output_tokens:,}", f"{b.output_tokens:,}"))
    for name in dict.fromkeys([*a.facts, *b.facts]):
        rows.append((name, ", ".join(a.facts.get(name, {})), ", ".join(b.facts.get(name, {}))))
    rows += [
        ("images in both", f"{diff.both:,}", ""),
        ("captions in both", f"{diff.pairs:,}", f"{diff.same:,} of them the same"),
        ("change in words", "", f"{change:+.2f} (95 %: {low:+.2f} to {high:+.2f})"),
        ("words in common", "", f"{diff.common:.0%}"),
        (
            "sentences",
            f"{diff.sentences_kept:,} kept, {diff.sentences_removed:,} gone",
            f"{diff.sentences_added:,} new",
        ),
    ]
    moved = [(pair, count) for pair, count in diff.statuses.items() if len(set(pair.split(" → "))) == 2]
    return rows + [(pair, "", f"{count:,}") for pair, count in moved]


def diff_page(diff: Diff, names: tuple[str, str], image_of: Callable[[str], bytes] | None = None) -> str:
    """The page.

    Args:
        diff: of two layers.
        names: what to call them.
        image_of: the bytes of an image by its key; None shows no images.
    """
    head, *rows = diff_table(diff, names)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    title = escape(f"{names[0]} and {names[1]}")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<table>
<tr>{"".join(f"<th>{escape(cell)}</th>" for cell in head)}</tr>
{lines}</table>
<h2>Samples</h2>
<p>Captions lost and gained first, then the most different ones, then some at random.
<del>Removed</del> words stand only in the first caption, <ins>added</ins> ones only in the second.</p>
{"".join(_article(pair, image_of) for pair in diff.samples)}
</body>
</html>
"""


def _article(pair: Pair, image_of: Callable[[str], bytes] | None) -> str:
    if pair.a.status == pair.b.status == "ok":
        tags = {"same": ("", ""), "removed": ("<del>", "</del>"), "added": ("<ins>", "</ins>")}
        changes = word_changes(pair.a.text, pair.b.text)
        text = " ".join(f"{tags[mark][0]}{escape(run)}{tags[mark][1]}" for mark, run in changes)
    else:
        shown = [row.text or f"({row.status}: {row.detail})" for row in (pair.a, pair.b)]
        text = f"<del>{escape(shown[0])}</del> <ins>{escape(shown[1])}</ins>"
    return (
        f'<article><div>{_picture(pair.key, image_of)}</div><div><p class="text" dir="auto">{text}</p>'
        f"<small>{escape(pair.key[:16])} · {pair.common:.0%} in common</small></div></article>\n"
    )


def _picture(key: str, image_of: Callable[[str], bytes] | None) -> str:
    if image_of is None:
        return ""
    try:
        jpeg = to_jpeg(decode(image_of(key)), max_side=_THUMBNAIL, quality=80)
    except ImageError as error:
        return escape(str(error))
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def _share(side: Side, status: str) -> str:
    count = side.by_status.get(status, 0)
    return f"{count:,} ({count / side.images:.2%})" if count and side.images else str(count)
